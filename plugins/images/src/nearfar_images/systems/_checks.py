"""What the configs of several systems check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nearfar.checks import expect

if TYPE_CHECKING:
    from nearfar.config import FrameConfig


def one_encoder(config: FrameConfig) -> None:
    """Raises unless every view is encoded alike: for losses that have no use for the keys of a teacher."""
    expect(config.key_encoder == "shared", "method.key_encoder", "'shared'", repr(config.key_encoder))
