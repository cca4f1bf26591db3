"""The parts of a training that the user passes in Python."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from torch import nn

from unet.config.loader import config_from_dict
from unet.config.schema import Config, CustomConfig, LossConfig, ModelConfig
from unet.config.values import config_to_dict
from unet.data.custom_transform import Transform
from unet.models.custom import LossFunction, part_name


@dataclass(frozen=True)
class CustomParts:
    """A network, loss and transform; None for those of the config."""

    network: nn.Module | None = None
    loss: LossFunction | None = None
    transform: Transform | None = None

    def record(self, config: Config) -> Config:
        """Return the config with the names of the parts, and the defaults of what they replace.

        Raises:
            TypeError: if a part is of another type.
            ValueError: if the config names other parts, or has settings that do not fit them.
        """
        if self.network is not None and not isinstance(self.network, nn.Module):
            raise TypeError(
                f"network: got {self.network!r:.100}, expected an instance of torch.nn.Module"
            )
        for name in ("loss", "transform"):
            part = getattr(self, name)
            if isinstance(part, type) or not (part is None or callable(part)):
                raise TypeError(f"{name}: got {part!r:.100}, expected a function or an instance")
        names = {
            field.name: None if (part := getattr(self, field.name)) is None else part_name(part)
            for field in fields(self)
        }
        for name, value in vars(config.custom).items():
            if value not in (None, names[name]):
                raise ValueError(
                    f"custom.{name}: got {value}, which this run was started with, and "
                    f"{name}={names[name]}; pass it in Python: unet.train(config, "
                    f"{name}={value})"
                )
        if not any(names.values()):
            return config
        for unused in self._unused(config):
            print(f"note: {unused}")
        if self.network is not None:
            config = replace(config, model=ModelConfig(in_channels=config.model.in_channels))
        if self.loss is not None:
            config = replace(config, loss=LossConfig())
        config = replace(config, custom=CustomConfig(**names))
        return config_from_dict(config_to_dict(config))

    def _unused(self, config: Config) -> Iterator[str]:
        """Describe the settings that the parts replace."""
        for name, part, section, default in (
            (
                "model",
                self.network,
                config.model,
                ModelConfig(in_channels=config.model.in_channels),
            ),
            ("loss", self.loss, config.loss, LossConfig()),
        ):
            changed = [key for key, value in vars(section).items() if value != vars(default)[key]]
            if part is not None and changed:
                settings = ", ".join(f"{name}.{key}" for key in changed)
                yield f"{settings}: not used, because you pass {part_name(part)}"
