from draw_conv_transpose import PICTURE, draw_both
from PIL import Image


def test_the_picture_of_the_docs_is_what_the_script_draws() -> None:
    with Image.open(PICTURE) as picture:
        # Not pixel by pixel: the text depends on the version of Pillow.
        assert picture.size == draw_both().size
