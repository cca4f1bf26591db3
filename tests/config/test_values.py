from helpers import small_config

from unet.config.data_schema import MayChange
from unet.config.values import changed_settings, config_to_dict, flat_settings

NEVER = MayChange(0)


def test_flat_settings_have_dotted_paths() -> None:
    flat = flat_settings(small_config())
    assert flat["train.epochs"] == 5
    assert flat["data.classes.cell"] == 255
    assert flat["model.widths"] == [64, 128, 256, 512, 1024]


def test_a_config_becomes_plain_values_with_the_classes_as_a_list() -> None:
    plain = config_to_dict(small_config("data.classes.cell=[1, 2]"))
    assert plain["data"]["classes"] == [
        {"name": "ground", "value": 0},
        {"name": "cell", "value": [1, 2]},
    ]
    assert plain["augment"]["scale"] == [1.0, 1.0]


def test_changed_settings_are_named_and_so_is_another_order_of_classes() -> None:
    config = small_config()
    other = small_config("optimizer.lr=0.5", "train.num_workers=7")
    assert changed_settings(config, other, MayChange.IN_USE) == [
        "optimizer.lr was 0.001 and is now 0.5"
    ]
    assert len(changed_settings(config, other, NEVER)) == 2
    turned = small_config("data.classes={cell: 255, ground: 0}")
    assert changed_settings(config, turned, NEVER) == [
        "the order of data.classes was ground, cell and is now cell, ground"
    ]
    assert changed_settings(config, config, NEVER) == []


def test_only_marked_settings_may_change_after_training() -> None:
    def changed(override: str, allowed: MayChange) -> bool:
        return bool(changed_settings(small_config(), small_config(override), allowed))

    anytime = ["data.root=b", "data.images=b", "data.cache_gib=1", "data.instances=b"]
    anytime += ["train.device=cpu", "train.precision=bfloat16", "train.num_workers=7"]
    on_resume = ["name=b", "runs=b", "train.previews=1", "train.save_every_minutes=1"]
    on_resume += ["train.save_every_steps=9"]
    in_use = ["data.tolerance=1", "tiling.overlap=0", "tiling.size=[900, 900]"]
    never = ["train.seed=1", "train.monitor=mean_dice", "model.norm=group", "data.ignore=[9]"]
    free = {
        MayChange.ON_RESUME: {*anytime, *on_resume},
        MayChange.IN_USE: {*anytime, *in_use},
    }
    for override in [*anytime, *on_resume, *in_use, *never]:
        for allowed, overrides in free.items():
            assert changed(override, allowed) == (override not in overrides), (override, allowed)
