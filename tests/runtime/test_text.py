from unet.runtime.text import join_some


def test_items_over_the_limit_are_counted() -> None:
    assert join_some(["a", "b"]) == "a, b"
    assert join_some(list("abcdef")) == "a, b, c, d, e and 1 more"
    assert join_some(list("abc"), limit=1) == "a and 2 more"
