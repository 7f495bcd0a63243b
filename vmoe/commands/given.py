"""What a user gave to a command."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmoe.errors import UserError


@dataclass(frozen=True)
class Given:
    """A command line, taken apart.

    Attributes:
      flags: the command's own, such as {"workdir": "runs/demo"}; those not given are left out.
      overrides: "--config.FIELD=VALUE" flags, for `vmoe.overrides`.
      arguments: what is no flag, in order.
    """

    flags: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    def need(self, flag: str, fix: str) -> str:
        """The value of a flag that the command cannot do without.

        Raises:
          UserError: if it was not given; says the fix.
        """
        if flag not in self.flags:
            raise UserError(f"--{flag} is missing; fix: {fix}")
        return self.flags[flag]

    def image_shape(self) -> tuple[int, int, int] | None:
        """What --image=224 or --image=28x28x1 says of height, width and channels.

        Raises:
          UserError: if it says anything else.
        """
        if "image" not in self.flags:
            return None
        sizes = self.flags["image"].split("x")
        if not all(size.isdecimal() and int(size) for size in sizes) or len(sizes) not in (1, 3):
            raise UserError(
                f"--image={self.flags['image']} is no size in pixels; "
                "fix: --image=224, or height, width and channels as in --image=28x28x1"
            )
        height, width, channels = map(int, sizes if len(sizes) == 3 else (*sizes * 2, "3"))
        return height, width, channels

    @property
    def with_workdir(self) -> list[str]:
        """The overrides, with --workdir=DIR as one of them."""
        if "workdir" not in self.flags:
            return self.overrides
        return [*self.overrides, f"--config.workdir={self.flags['workdir']}"]


def quiet() -> None:
    """Keeps the libraries' notes about their own workings out of the output."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
