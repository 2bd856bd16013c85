from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.data.final_answer import Number, choice, gold_number, last_boxed, number
from equipoise.data.verify_tests import program_in


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{1} and then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}} for all", r"\left\{1, 2\right\}"),
        (r"\boxed{3} but \boxed{4 is cut", "3"),
        (r"\fbox{8}", "8"),
        (r"$\boxed 7$ it is", "7"),
        ("no box", None),
        (r"\boxed{}", ""),
        (r"{ \boxed{1 \boxed{2} }", "2"),
        (r"\boxedabc{3}", None),
    ],
)
def test_the_last_box_whose_braces_match(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-5", -5),
        ("so 3 - 8 = −5", -5),
        ("it is –5", -5),
        ("pages 3–5", 5),  # a range, no minus
        ("10-5", 5),
        ("x-5", 5),
        ("the loss is -$1,234.50", Fraction("-1234.5")),
        ("$-7$", -7),
        (r"\boxed{-\frac{1}{2}}", Fraction(-1, 2)),
        (r"$x=\frac{-3}{4}$", Fraction(-3, 4)),
        (r"\boxed{1\frac{1}{2}}", Fraction(3, 2)),
        (r"\dfrac34", Fraction(3, 4)),
        ("1 3/4 cups", Fraction(7, 4)),
        ("1½", Fraction(3, 2)),
        ("٤٢", 42),
        ("４２", 42),
        ("1\u202f234\u202f567", 1234567),
        ("1{,}234", 1234),
        (r"1,\!234", 1234),
        ("1,2345", 2345),  # no groups of three: two numbers
        (r"2.5 \times 10^{3}", 2500),
        ("6e-2", Fraction(6, 100)),
        ("10² = 100", 100),
        ("答案是5元", 5),
        ("72.", 72),
        ("H2O, v1, x_3", None),
        ("5/0", None),
        ("#### 72\n", 72),
        ("#### 72\nThat was 1 of 2 parts.", 72),
        ("The answer is 12. I hope the 2 answers are correct.", 12),
        ("The answer is x = 3 + 4 = 7 apples, for 2 people", 7),
        ("The answer is not 5. The answer is 6, as 3+3 shows.", 6),
        ("The answer is 5. Wait. The answer is 6", 6),
        (r"The answer is \boxed{9}, from 12 minus 3", 9),
        ("The answer is $18 because 3 < $20 holds", 18),
        ("The answer is $18 as $20 > $3", 18),
        ("The answer is 5, since $x>3$", 5),
        (r"The answer is $x = 5$ or $x = \sqrt{6}$", 5),
        (r"\boxed{(3, 4)}", None),
        (r"\boxed{18 \text{ dollars}}", 18),
        ("Twelve", None),
        ("9" * 2000, None),
        # a minus apart from its number
        (r"\boxed{- 5}", -5),
        ("x = - 5", -5),
        ("x = -(5)", -5),
        ("#### - 2", -2),
        ("#### $- 1,200", -1200),
        (r"\boxed{-{5}}", -5),
        (r"\boxed{\text{-}5}", -5),
        (r"\boxed{- \frac{1}{2}}", Fraction(-1, 2)),
        (r"\boxed{-{\frac{1}{2}}}", Fraction(-1, 2)),
        ("The answer is $- 5$.", -5),
        ("Answer: **- 5**", -5),
        ("**Answer:** − 5", -5),
        ("It is - 5 degrees.", -5),
        ("[- .5]", Fraction(-1, 2)),
        ("3 - 5", 5),
        ("what is left of 3 - 5 apples", 5),
        ("$x$ - 5", 5),
        ("$x$- 5", 5),
        ("f(3) - 5", 5),
        ("**Total** - 5 apples", 5),
        ("First:\n- 3 apples\n- 5 pears", 5),
        # powers of ten
        ("10^5", 10**5),
        ("The answer is 10^{-3}", Fraction(1, 1000)),
        ("-10^{2}", -100),
        ("10**4", 10**4),
        ("10^(-2)", Fraction(1, 100)),
        ("10¹²", 10**12),
        ("2.5 × 10⁻³", Fraction(25, 10**4)),
        ("3/10^3", Fraction(3, 1000)),
        ("110^2", 110),
        ("10^{n}", 10),
        ("5 m s⁻¹", 5),
        # a braced argument of a fraction beside a bare one
        (r"\frac9{19}", Fraction(9, 19)),
        (r"-\frac9{19}", Fraction(-9, 19)),
        (r"\frac{1}2", Fraction(1, 2)),
        (r"\frac{ 270 } 7", Fraction(270, 7)),
        (r"1\frac1{2}", Fraction(3, 2)),
        (r"\boxed{\frac{1}{2}3}", None),  # 3 halves
    ],
)
def test_which_number_is_meant(text, value):
    found = number(text)
    assert (found and found.value) == value


@pytest.mark.parametrize(
    ("gold", "value"),
    [
        ("1,200", 1200),
        ("-5", -5),
        ("3 + 4 = 7", 7),
        ("x = 3 + 4 = 7", 7),
        ("He has 3 * 4 = <<3*4=12>>12 apples, of 20.\n#### 12", 12),
        ("From 3 and 4: \\boxed{7}", 7),
        ("The answer is 12. I hope the 2 answers are correct.", 12),
        ("5 or 5.0", 5),
        ("18 dollars", 18),
        ("$1,234.50", Fraction("1234.5")),
        ("50 %", 50),
        ("1 1/2", Fraction(3, 2)),
        (r"2.5 \times 10^{3}", 2500),
        ("10^5", 10**5),
        (r"90^\circ", 90),
        (r"25 \text{ cm}^2", 25),
        ("25 cm²", 25),
        (r"864 \mbox{ inches}^2", 864),
        (r"11,\! 111,\! 100", 11111100),
        ("9.8 m/s^2", Fraction("9.8")),
        ("5 m s^{-1}", 5),
        (r"2\sqrt{3}", None),
        ("2√3", None),
        (r"3\pi", None),
        ("3π", None),
        (r"\frac{\pi}{4}", None),
        (r"\frac9{19}", Fraction(9, 19)),
        (r"-\frac9{19}", Fraction(-9, 19)),
        (r"\frac1{2}", Fraction(1, 2)),
        (r"\frac{270}7\text{ degrees}", Fraction(270, 7)),
        ("(2, 2)", None),
        ("(-1,-1)", None),
        (r"\left(-\frac12,-\frac12\right)", None),
        ("2, 2", None),
        ("(5, y)", None),
        ("-2 + i", None),
        ("1+i", None),
        ("-i - 1", None),
        (r"4\mathrm{i}", None),
        ("4 i", None),
        (r"2\mathbf{a}", None),
        (r"5\alpha", None),
        ("1 - p", None),
        ("-1-a", None),
        ("mn + 5", None),
        ("5/x", None),
        (r"2 \cdot x", None),
        (r"\bar{v} = 6 + \Delta t", None),
        ("1:1", None),
        ("n : 1", None),
        ("(x + 4)(x - 4)", None),
        (r"(2+2+2) \times (2+2)", None),
        ("y = x + 5", None),
        ("s^3 - 3sp", None),
        ("x + y - 3 = 0", None),
        (r"\frac{x}{4}+\frac{y}{2}=1", None),
        ("5!", None),
        ("|-5|", None),
        ("sqrt(2)", None),
        ("2pi", None),
        ("2*pi", None),
        # names, units and words go on being read
        ("mn = 1", 1),
        ("|PQ| = 4", 4),
        ("f(-10) = 2", 2),
        ("a_{2011} = 2", 2),
        (r"7 \times 9 + 12 \div (3 - 2) = 75", 75),
        ("2.0107e-06", Fraction("2.0107e-06")),
        (r"8 \times 10^{-5}", Fraction(8, 10**5)),
        (r"10^{\circ}\mathrm{C}", 10),
        (r"2.5 \text{ s}", Fraction(5, 2)),
        (r"800 \text{ K}", 800),
        (r"5 \frac{m}{s}", 5),
        (r"9.8 \frac{\mathrm{m}}{\mathrm{s}^2}", Fraction("9.8")),
        (r"25 \mathrm{~cm}^{2}", 25),
        ("32¢", 32),
        ("(27/100)", Fraction(27, 100)),
        (r"91 \text{ students or more}", 91),
        ("Answer: 15 floors", 15),
        (r"6\text{th}", 6),
        ("5 a day", 5),
        ("9 p.m.", 9),
        ("a 5-star hotel", 5),
        ("2^{10}", None),
        ("x^2+3x", None),
        (r"\pm 5", None),
        (r"\ln 2", None),
        ("(3, 4)", None),
        ("(3,4)", None),
        ("2k", None),
        ("y = -2x", None),
        ("4343_6", None),
        (r"a \geq 3", None),
        ("x < -3", None),
        (r"(5,\infty)", None),
        ("1 or 2", None),
        (r"1 \text{ or } 2", None),
        ("x=1, x=5", None),
        ("x=1,y=5", None),
        ("3:45", None),
        ("2024-05-01", None),
        ("1,5", None),
        (r"The answer is 2\sqrt{3}.", None),
        ("Paris", None),
    ],
)
def test_a_gold_answer_is_one_plain_number(gold, value):
    found = gold_number(gold)
    assert (found and found.value) == value


@pytest.mark.parametrize(
    "mark", [r"4, so \boxed{%s}", "4, so\n#### %s", r"4. The answer is $%s$.", r"The answer is: **\(%s\)**, not 4"]
)
@pytest.mark.parametrize(
    ("content", "value"),
    [
        *[
            (other, None)
            for other in (
                *(r"\sqrt{2}", r"2\pi", "2^3", r"\log 2", r"\frac{\pi}{6}", "5!", "x>3", r"\sqrt{\frac12}", "2√3"),
                *(
                    "2k",
                    "3xy",
                    "1 - p",
                    "1+i",
                    r"\frac{x}{2}",
                    "(2, 2)",
                    "x=2, y=3",
                    "2pi",
                    r"\lfloor 5.5 \rfloor",
                    "1:1",
                ),
            )
        ],
        *[
            (two, 2)
            for two in (
                *(
                    "x = 2",
                    "2",
                    r"\$2",
                    "$2$",
                    r"2 \text{ cm}",
                    r"2^\circ",
                    "2 cm²",
                    r"2 \text{ m}^2",
                    r"2\,\mathrm{m}²",
                    "2 m",
                    r"2\,\text{km/h}",
                ),
                *(
                    "*2* apples",
                    "**2**",
                    "2 apples",
                    "2 a day",
                    "x + y = 2",
                    "x^2 - 2 = 2",
                    r"\frac{4}2",
                    "(2)",
                    "$2/hour",
                ),
            )
        ],
        (r"2\%", 2),
        ("3 × 10^2", 300),
        ("2e-5", Fraction(2, 10**5)),
    ],
)
def test_in_a_box_stands_one_plain_number_or_none(mark, content, value):
    found = number(mark % content)
    assert (found and found.value) == value


def test_percent_is_the_number_and_its_hundredth_but_once():
    def equal(first, second):
        return number(first).equals(number(second), relative=Fraction(1, 10_000))

    assert equal("50%", "50") and equal("50%", "0.5") and equal("0.5", r"50\%") and equal("50 percent", "50%")
    assert not equal("50%", "0.5%") and not equal("50", "0.5") and not equal("0.5%", "50%")


def test_whole_numbers_are_compared_exactly_and_others_in_any_unit_alike():
    def equal(first, second):
        return number(first).equals(number(second), relative=Fraction(1, 10_000))

    assert not equal("9867630", "9867631")
    assert equal("9867630.0", "9867630")
    for unit in ("", "e-9", "e3"):
        assert equal(f"0.33333{unit}", f"0.333333{unit}")
        assert not equal(f"0.333{unit}", f"0.333333{unit}")
    assert not equal("0.00001", "0")


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9),
    st.sampled_from(
        ["{}", "#### {}", "The answer is {}.", r"thus \boxed{{{}}}", "from 1 to 2\nAnswer: {} apples", "= {}"]
    ),
    st.booleans(),
)
def test_a_number_is_read_back_however_it_is_written(value, form, grouped):
    written = f"{value:,}" if grouped else f"{value}"
    assert number(form.format(written)).value == Fraction(value)
    assert number(form.format(written.replace("-", "−"))).value == Fraction(value)


@given(st.text(alphabet="ab1,./-%$\\{}^ e\n"))
def test_no_text_is_too_odd_to_read(text):
    assert number(text) is None or isinstance(number(text).value, Fraction)
    assert choice(text) in {None, "A", "B", "E"}


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 6_000,
        r"\boxed{" * 6_000 + "}" * 6_000,
        "The answer is " * 4_000,
        "#### " * 8_000,
        "\n" * 100_000,
        "Answer:" + " " * 100_000 + "!",
        "Answer: the" + " " * 100_000 + "!",
        "`" * 100_000,
        "```" + "a" * 100_000,
        "1" * 100_000,
        "1,111" * 8_000,
        "-" * 100_000,
        r"\frac{1" * 6_000,
        "= -" * 30_000,
        "=-" + "(" * 100_000,
        "is" + " " * 100_000 + "-",
        "10 ^ " * 20_000,
        "10^{" + " " * 100_000,
        "5 m" + " " * 100_000,
        "#### 5" + "(" * 100_000,
        "#### 5 (" + "1,a" * 30_000,
        "#### 5" + " - x" * 30_000,
        "#### 5" + r" \frac{ m }{" * 9_000,
    ],
    ids=range(23),
)
def test_answers_that_repeat_themselves_are_read_in_one_pass(text):
    """With a second pass for each mark any of these takes minutes."""
    number(text)
    gold_number(text)
    assert choice(text) is None and program_in(text) == text


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[
            (spelled, "B")
            for spelled in ("B", "b", "(B)", "**B**", "B.", "B) Paris", "(B) Paris", "Ⓑ", "Ｂ", "`B`", '"B"')
        ],
        *[
            (f"I compared A and C. {said}", "B")
            for said in (
                "The answer is (B).",
                "Answer: B",
                "ANSWER: **B**",
                "The correct answer is option B, I think",
                "The best choice is: b)",
                r"$\boxed{B}$",
                r"\boxed{\text{B}}",
                "#### B",
                "Answer: B because I like it",
                "The answer is b",
            )
        ],
        ("(A) is wrong, so is (C); the answer is (D)", "D"),
        ("Option C looks right", "C"),
        ("The answer is A or B", None),
        ("The answer is A. No, the answer is B", None),
        (r"The answer is A, that is \boxed{B}", None),
        ("The answer is not A. The answer is B", "B"),
        ("The answer is a good one", None),
        ("A dog", None),
        ("I do not know", None),
        ("Bananas", None),
        ("A. one\nB. two", None),
        ("The answer is Berlin", None),
        ("", None),
    ],
)
def test_which_choice_is_meant(text, letter):
    assert choice(text) == letter


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Fraction(70_000), "70000"),
        (Fraction(10**20 + 1), "100000000000000000001"),
        (Fraction(-7, 4), "-1.75"),
        (Fraction(1, 3), "0.333333333333"),
        (Fraction(1, 10**8), "0.00000001"),
        (Fraction(10**500), "1e+500"),
    ],
)
def test_a_number_is_shown_in_digits(value, shown):
    assert str(Number(value)) == shown
    assert str(Number(value, percent=True)) == f"{shown} %"
