import pytest

from equipoise.core.secrets import known_secrets, one_line, redact


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
        "default_query": {"mood": "m00d-m00d-m00d", "api_key": "que2y-que2y"},
        "tries": [{"X-Api-Key": "li5t-li5t", "stop_token_ids": [12345678]}],
    }
    secrets = known_secrets(arguments, "https://me:pa55-pa55@host/v1")
    assert redact("given-9-given t3nant-t3nant pa55-pa55 m00d-m00d-m00d", secrets) == "[key] [key] [key] m00d-m00d-m00d"
    assert redact("que2y-que2y li5t-li5t 12345678", secrets) == "[key] [key] 12345678"


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


@pytest.mark.parametrize(
    ("value", "hidden"),
    [
        ("1234567", False),
        ("12345678", True),
        ("abcdefghijklmno", False),
        ("abcdefghijklmnop", True),
        ("abc-def_ghi.jklm", True),
        ("  spaced-1  ", True),
    ],
)
def test_how_short_a_secret_may_be(monkeypatch, value, hidden):
    monkeypatch.setenv("LOCAL_API_KEY", value)
    assert redact(f"<{value.strip()}>") == ("<[key]>" if hidden else f"<{value.strip()}>")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("KEY", True), ("keys", True), ("MY_KEY", True), ("key_file", True), ("monkey", False), ("KEYBOARD", False),
        ("token", True), ("max_tokens", False), ("secret", True), ("passwd", True), ("PASSWORD", True),
        ("passphrase", False), ("credential", True), ("credentials", True), ("auth", True),
        ("authorization", True), ("author", False), ("header", True), ("headers", True),
        ("myapikey", True), ("apikeys", True), ("AWSACCESSKEYID", True), ("PrivateKey", True), ("HFTOKEN", True),
        ("PGPASSWORD", True), ("MYSECRET_2", True), ("tokenizer", False), ("secretary", False), ("private", False),
    ],
)  # fmt: skip
def test_names_that_say_secret(name, secret):
    found = known_secrets({name: "s3cret-value", "other": "0ther-value"})
    assert ("s3cret-value" in found) is secret and "0ther-value" not in found


def test_secrets_come_longest_first_in_pieces_and_as_an_address_holds_them():
    value = {"a": ("Bearer tok3n/tok3n", ["short", 5, None])}
    found = known_secrets({"headers": value}, "https://me:p%2Fss-w0rd@host/")
    mine = [
        "Bearer%20tok3n%2Ftok3n",
        "Bearer tok3n/tok3n",
        "tok3n%2Ftok3n",
        "p%252Fss-w0rd",
        "p%2Fss-w0rd",
        "tok3n/tok3n",
    ]
    assert set(mine) <= set(found) and "short" not in found
    assert [len(each) for each in found] == sorted(map(len, found), reverse=True)
    assert known_secrets(None, "https://me@host/") == known_secrets()
    assert redact("a bb ccc", ["bb"]) == "a [key] ccc" and redact("a", []) == "a"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("two \n  lines\tof it", "two lines of it"),
        ("x" * 240, "x" * 240),
        ("x" * 241, "x" * 239 + "…"),
        ("Bearer abc.def-123 sent", "[key] sent"),
        ("basic dXNlcjpwdw== sent", "[key] sent"),
        ("a bearer of news", "a bearer of news"),
        ('{"api_key": "abc"}', '{"[key]'),
        ("Authorization=abc x", "[key] x"),
        ("x-api-key: abc x", "[key] x"),
        ("see sk-abcdefgh, hf_12345678 and key-short", "see [key], [key] and key-short"),
        ("at https://me:pw@host/path", "at https://[key]host/path"),
        ("from //me:pw@host, of me@host // you@host", "from //[key]host, of me@host // you@host"),
        ("GET /v1?key=abc&model=m&access_key=d&signature=e", "GET /v1[key]&model=m[key][key]"),
        ("my own s3cret", "my own [key]"),
    ],
)
def test_what_others_said_of_an_error_is_one_short_line_without_keys(text, cleaned):
    assert one_line(text, ["s3cret"]) == cleaned


def test_secrets_of_the_environment_are_no_part_of_a_line(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2hunter2")
    assert one_line("KeyError:\n'hunter2hunter2'") == "KeyError: '[key]'"
