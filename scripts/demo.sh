#!/bin/sh
# The demo: one study and one job on the embedded default. Usage: demo.sh EQUIPOISE MODEL OUT
set -eu
equipoise=$1
model=$2
out=$3
study=
job=

if [ "$model" = smollm2 ]; then
    "$equipoise" models fetch smollm2 >&2
    study="--steps 40 --batch-size 4 --train-blocks 10 --evaluations 4"
    job="--steps 40 --batch-size 4 --train-blocks 10 --learning-rate 3e-4 --chat-template none"
fi

echo "1/2 The scales: what does forgetting cost? (3 seeds, 3 arms: a preview of the recorded study)" >&2
# shellcheck disable=SC2086
said=$("$equipoise" study run sago --model "$model" --seeds 3 --arms sum,pcgrad,sago $study --out "$out/study")
echo "$said" >&2

echo "2/2 The job: make a model forget examples/forget.jsonl" >&2
# shellcheck disable=SC2086
forgotten=$("$equipoise" unlearn --model "$model" --forget examples/forget.jsonl --retain examples/retain.jsonl \
    --objective simnpo --combine sago $job --out "$out/forgotten")

echo "The model that forgot: $forgotten (its page: $forgotten/report.html)" >&2
echo "The study's report, to be opened in a browser:" >&2
echo "$said" | tail -n 1
