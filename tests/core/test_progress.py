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
        "Teaching: 40/100 steps, 10 s, about 15 s left  loss 1.23",
        "Teaching: 80/100 steps, 20 s, about 5 s left  loss 1.23",
        "Teaching: 100/100 steps, 25 s  loss 1.23",
    ]


def test_long_work_tells_minutes_and_what_was_told_is_not_repeated(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("Teaching", total=100) as bar:
        clock[0] = 80.0
        bar.update(2)
        clock[0] = 4000.0
        bar.update(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Teaching: 2/100, 1:20, about 1:05:20 left", "Teaching: 100/100, 1:06:40"]


def test_what_an_earlier_attempt_did_says_nothing_about_the_speed_of_this_one(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("Teaching", total=100, done=50) as bar:
        clock[0] = 20.0
        bar.update(60)
    assert capsys.readouterr().err.splitlines() == ["Teaching: 60/100, 20 s, about 1:20 left"]


def test_the_share_is_that_of_the_outermost_bar_with_a_total():
    assert progress.share() is None
    with (
        progress.progress("Waiting"),
        progress.progress("All", total=4) as outer,
        progress.progress("Part", total=2) as bar,
    ):
        bar.advance()
        assert progress.share() == 0
        outer.update(3)
        assert progress.share() == 0.75
        outer.update(5)
        assert progress.share() == 1
    assert progress.share() is None


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


def test_what_others_wrote_steers_neither_lines_nor_bars(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    for terminal in (False, True):
        clock[0] = 0.0
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        with progress.progress("Asking [/evil] \x1b[2J") as bar:
            clock[0] += 60
            bar.advance(1, newest="[red] \x9bm")
            progress.note("told \x1b[1A")
    told = capsys.readouterr().err
    assert "Asking [/evil] \\u001b[2J: 1, 1:00  newest [red] \\u009bm" in told
    assert told.count("told \\u001b[1A") == 2
    assert "\x1b[2J" not in told
    assert "\x9b" not in told
