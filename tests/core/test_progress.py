from equipoise.core import progress


def test_plain_lines_after_two_seconds_only(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("Teaching", total=100, unit="steps") as bar:
        for second in range(1, 26):
            clock[0] = float(second)
            bar.advance(4, loss="1.23")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Teaching: 40/100 steps, 10 s  loss 1.23",
        "Teaching: 80/100 steps, 20 s  loss 1.23",
        "Teaching: 100/100 steps, 25 s  loss 1.23",
    ]


def test_short_work_and_quiet_work_show_nothing(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("Short") as bar:
        clock[0] = 1.9
        bar.advance()
    with progress.quiet():
        assert progress.is_quiet()
        with progress.progress("Silent") as bar:
            clock[0] = 60.0
            bar.advance()
    assert not progress.is_quiet()
    assert capsys.readouterr() == ("", "")


def test_every_advance_is_a_sign_of_life():
    beats = []
    with progress.watch(lambda: beats.append(1)):
        with progress.quiet(), progress.progress("Working") as bar:
            bar.advance()
            bar.update(5)
        progress.beat()
    progress.beat()
    assert len(beats) == 4  # the start, two advances, one beat; none after the watch
