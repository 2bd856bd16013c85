#!/bin/sh
# The demo: a claim of a paper decided, and a model that forgets. Usage: demo.sh EQUIPOISE OUT
set -eu
equipoise=$1
out=$2

echo "Two minutes on two free cores; everything goes to $out." >&2
echo "1/2 A study: does SDP-CROWN prove more about networks than alpha-CROWN and LipNaive? 3 arms, 10 seeds, 1 minute" >&2
said=$("$equipoise" study run sdp-crown --iterations 30 --arms sdp-crown-paper,alpha-crown,lip-naive --out "$out/study")
echo "$said" | grep -A 1 -E '^(supported|refuted|undecided): ' >&2

echo "2/2 A job: make a small model forget examples/forget.jsonl and keep examples/retain.jsonl, 1 minute" >&2
# Its matrices are too small for a second thread to help, and threads that wait for each other stall on a busy machine.
forgotten=$(OMP_NUM_THREADS=1 "$equipoise" unlearn --model tiny --forget examples/forget.jsonl --retain examples/retain.jsonl \
    --objective simnpo --combine sago --out "$out/forgotten")

echo "To be opened in a browser: the verdicts, and what the model knew and answered before and after." >&2
echo "$said" | tail -n 1
echo "$forgotten/report.html"
