"""Where a gradient graph is going to run, which decides what its operators may be."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcustom.exceptions import ProviderError

__all__ = ["HERE", "Host"]


@dataclass(frozen=True)
class Host:
    """What an engine may count on.

    Parameters
    ----------
    device : {'cpu', 'cuda'}, default='cpu'
        Kind of device.
    portable : bool, default=False
        Whether the graph runs elsewhere than in this onnxruntime: only operators that every runtime has,
        those of browsers and of mobile builds among them.
    """

    device: str = "cpu"
    portable: bool = False

    @classmethod
    def of(cls, device: str, portable: bool) -> Host:
        """The host that a user's words mean.

        Raises
        ------
        ProviderError
            If there is no such kind of device; whether this machine has one does not matter.
        """
        kind = str(device).lower().partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ProviderError(f"{device!r} is no device that a gradient is made for: 'cpu' or 'cuda'.")
        return cls(kind, bool(portable))


#: The CPU of this machine.
HERE = Host()
