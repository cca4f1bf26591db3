from unet.runtime.text import join_some, plural, printable, shorten


def test_items_over_the_limit_are_counted() -> None:
    assert join_some(["a", "b"]) == "a, b"
    assert join_some(list("abcdef")) == "a, b, c, d, e and 1 more"
    assert join_some(list("abc"), limit=1) == "a and 2 more"


def test_numbers_agree_with_their_nouns() -> None:
    assert [plural(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert plural(2, "class", "classes") == "2 classes"


def test_a_terminal_never_gets_control_characters() -> None:
    text = "a\x1b[31m\r\n\x9b\u202e\udcff é 漢 \u200c"
    assert printable(text) == r"a\x1b[31m\r\n\x9b\u202e\udcff é 漢 " + "\u200c"
    assert printable(text, keep="\n").splitlines()[1:] == [r"\x9b\u202e\udcff é 漢 " + "\u200c"]


def test_long_texts_lose_their_middle() -> None:
    assert shorten("x" * 100) == "x" * 100
    assert len(shorten("a" * 500 + "z", 60)) <= 60
    assert shorten("a" * 500 + "z", 60).endswith("az")
