"""Layer: the base of all layers and models, whose parameters can begin anew."""

from __future__ import annotations

from torch import nn


class Layer(nn.Module):
    """A module that can be reset to what its constructor leaves.

    The constructor builds the parts, which draw their own values, and then calls
    `init_parameters`. A class that extends another constructor overrides `reset_parameters`
    instead, because the other one runs before its parameters exist.
    """

    def init_parameters(self) -> None:
        """Fill the module's own parameters, and change what its parts begin with. Here: nothing."""

    def reset_parameters(self) -> None:
        """Draw all parameters anew, those of the parts first, from the constructor's
        distributions. It also serves `module.apply`, which visits the parts first."""
        reset_parts(self)
        self.init_parameters()


def reset_parts(module: nn.Module) -> None:
    """Reset whatever is inside `module`, also in containers, which have no reset of their own."""
    for part in module.children():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
        else:
            reset_parts(part)
