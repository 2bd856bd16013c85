import pytest

from equipoise.core.secrets import known_secrets, redact


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MY_API_KEY", "HF_TOKEN", "DB_PASSWORD", "OTEL_HEADERS", "LOCAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_values_of_telling_names_are_gone_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcd-1234-efgh")
    monkeypatch.setenv("HF_TOKEN", "hf_aB/c+dEfGh")
    monkeypatch.setenv("OTEL_HEADERS", "Authorization=Bearer tok3n-tok3n")
    monkeypatch.setenv("COLUMNS", "abcdefgh12345678")
    said = "key abcd-1234-efgh, at ?t=hf_aB%2Fc%2BdEfGh or hf_aB/c+dEfGh, tok3n-tok3n, abcdefgh12345678"
    assert redact(said) == "key [key], at ?t=[key] or [key], [key], abcdefgh12345678"


def test_arguments_and_addresses_have_secrets_too():
    arguments = {
        "api_key": "given-9-given",
        "default_headers": {"X-Tenant": ["t3nant-t3nant"]},
        "mood": "m00d-m00d-m00d",
    }
    secrets = known_secrets(arguments, "https://me:pa55-pa55@host/v1")
    assert redact("given-9-given t3nant-t3nant pa55-pa55 m00d-m00d-m00d", secrets) == "[key] [key] [key] m00d-m00d-m00d"


def test_a_secret_that_holds_another_leaves_no_part(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "part-0000")
    monkeypatch.setenv("HF_TOKEN", "part-0000-and-more")
    assert redact("part-0000-and-more") == "[key]"


@pytest.mark.parametrize("word", ["EMPTY", "ollama", "Password", "not-needed"])
def test_words_of_honest_answers_are_no_secrets(monkeypatch, word):
    monkeypatch.setenv("LOCAL_API_KEY", word)
    monkeypatch.setenv("OTEL_HEADERS", "Authorization=Bearer tok3n-tok3n")
    said = f"The {word} is a word, Authorization and Bearer, too."
    assert redact(said) == said
