"""Replace a module inside a network, and write the code that reads or builds one."""

from __future__ import annotations

from torch import nn


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a submodule by ``new``, under every name of the same object.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
        >>> replace_module(network, "1", nn.ReLU())
        >>> network[1]
        ReLU()
    """
    old = root.get_submodule(name)
    new.train(old.training)  # a new module starts in training mode, the old one may be in evaluation
    for place in [found for found, module in root.named_modules(remove_duplicate=False) if module is old]:
        owner, _, attribute = place.rpartition(".")
        root.get_submodule(owner).register_module(attribute, new)


def path_of(root: nn.Module, name: str, variable: str = "model") -> str:
    """Return the Python expression that reads a submodule.

    Example:
        >>> network = nn.ModuleDict({"a": nn.Sequential(nn.ReLU()), "1": nn.ReLU()})
        >>> path_of(network, "a.0"), path_of(network, "1")
        ("model['a'][0]", "model['1']")
    """
    expression, owner = variable, root
    for part in name.split(".") if name else ():
        if isinstance(owner, nn.ModuleDict):
            expression += f"[{part!r}]"
        else:
            name_like = f".{part}" if part.isidentifier() else f"._modules[{part!r}]"
            expression += f"[{part}]" if part.isdigit() else name_like
        owner = owner.get_submodule(part)
    return expression


def construction_of(module: nn.Module) -> str:
    """Return the code that builds a module of torch with the settings in its repr.

    Example:
        >>> construction_of(nn.LeakyReLU(0.1)), construction_of(nn.LayerNorm(4))
        ('nn.LeakyReLU(negative_slope=0.1)', 'nn.LayerNorm(4)')
    """
    if isinstance(module, nn.LayerNorm):
        return f"nn.LayerNorm({', '.join(map(str, module.normalized_shape))})"
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return f"nn.{type(module).__name__}({module.num_features})"
    if isinstance(module, nn.GroupNorm):
        return f"nn.GroupNorm({module.num_groups}, {module.num_channels})"
    return f"nn.{type(module).__name__}({module.extra_repr()})"


def is_inside(root: nn.Module, name: str, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return True if a submodule is inside a module of one of these kinds.

    Example:
        >>> attention = nn.Sequential(nn.MultiheadAttention(4, 1))
        >>> is_inside(attention, "0.out_proj", (nn.MultiheadAttention,)), is_inside(attention, "0", (nn.ReLU,))
        (True, False)
    """
    parts = name.split(".")[:-1] if name else []
    owners = [".".join(parts[:count]) for count in range(len(parts) + 1)]
    return any(isinstance(root.get_submodule(owner), kinds) for owner in owners)
