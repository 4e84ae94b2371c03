"""Preconditioning of gradients by F⁻¹, F over the newest gradients, as an optimizer of PyTorch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import SlidingWindowInverse, TopK, _backend
from .. import _validation as check
from .._window.options import WindowOptions
from .checkpoints import Loaded, complete_state, read_state
from .descent import append_and_solve, apply_step, scaled_gradient
from .groups import (
    Group,
    agreed,
    as_html,
    check_group,
    check_parameters,
    check_params,
    has_moments,
    momentum_of_gradients,
    normalize_options,
    require_groups,
)
from .layout import WindowLayout
from .masks import ActiveWeights, Masks
from .model_state import forget_cached_weights
from .window_state import unpack_window

NO_STATE: dict[str, Any] = {}


@_backend.methods_outside_graphs
class MFAC(Optimizer):
    """p ← p − lr (v + weight_decay p), v ← momentum v + F⁻¹g, F = λD + (1/n)Σ g gᵀ over the newest gradients, g in it.

    D is diagonal: √v̂ + 1e-8 by default, the identity for ``beta2=None``. n is the capacity of the window by default;
    see `normalization`.

    Parameters
    ----------
    params : iterable
        Parameters, or dictionaries that describe groups of them, as for every optimizer of PyTorch. Each group
        has its own window, and so one dtype on one device. Sharded parameters (DTensor) are refused; parameters that
        replace those of a model later, as fully_shard does, are not optimised.
    lr : float or torch.Tensor, shape ()
        Learning rate ≥ 0.
    window : int
        Capacity m ≥ 1 of a window: the number of gradients in F. It stores m + 1 vectors of the parameters' size.
    damping : float
        λ > 0. Unit: that of gradients, without `beta2` that of squared gradients. That of a group may be changed
        between steps, at the cost of O(m³).
    beta2 : float, optional
        In [0, 1): F has λ√v̂ on its diagonal, v̂ being Adam's running mean of squared gradients, with weights that decay
        by β₂ a step; None for λ itself. With a number, λ is from 0.1 to 1, and lr λ/1000 to λ/300, or λ/100 where it
        rises at the start and falls to zero. It cannot change between None and a number: the units of the stored
        gradients depend on it.
    momentum : float
        In [0, 1), as in `torch.optim.SGD`. For v ← momentum v + (1 − momentum) F⁻¹g, as in the first version by M-FAC's
        authors, pass their lr times 1 − momentum for the same path.
    momentum_of : {"steps", "gradients"}
        What momentum adds up: steps, as above, each with the F of its time, or gradients, v = F⁻¹Σ_a momentumᵃ g_a with
        g_a of age a in the window, and the newest F. For an F that does not change both are the same up to the
        gradients that have left the window.
    weight_decay : float
        ≥ 0, times the weights: an addition to the step.
    decoupled_weight_decay : bool
        True adds weight_decay p to the step, as `torch.optim.AdamW`: weights decay at a rate independent of λ and F,
        and F is of gradients of the loss only. False adds it to the gradient first, so that it is in F too, as in the
        first version by M-FAC's authors: directions without gradients then decay 1/λ times as fast.
    maximize : bool
        Whether to maximise instead.
    masks : mapping of parameter to tensor, or torch.nn.Module, optional
        For sparse models: True, or 1, where a weight may move. The others are never written to, and neither windows
        nor momentum have memory for them. A module that `torch.nn.utils.prune` has pruned may be passed for its
        masks. They are read once: construct a new optimizer after the next pruning.
    shared_window : bool
        One window over all groups, whose `window` and `damping` then have to agree, and with momentum of gradients
        their `momentum` too; the other options may differ.
    normalization : {"mean", "sum", "window"}
        Divisor of the sum in F: the number of stored gradients, 1, or the capacity, as M-FAC's authors do. With
        "window" the first steps are as long as later ones, with "mean" they are shorter.
    precision : {"default", "high"}
        "high" computes in float64 by panels, for gradients of any dtype.
    compression : TopK, optional
        Keep the largest entries of each gradient instead of the whole.

    Raises
    ------
    TypeError
        Options of another kind; parameters that are complex, sharded or sparse, or of several dtypes or devices in a
        window; sparse gradients.
    ValueError
        Options out of range; in a step, gradients with nan or infinity.

    Warns
    -----
    IllConditionedWarning
        A step makes κ larger than the arithmetic in use resolves.

    Notes
    -----
    A parameter without a gradient counts as zero in g and is not changed; a group without any gradient takes no step. A
    step that raises changes no parameters, momenta or windows.

    Cost: two passes over the m gradients and O(m²) a step, and a few passes over the parameters; a window that is not
    full factors its m × m system from scratch in each step. (m + 1) d numbers of memory, d more for the momentum of
    steps; with `compression` as `SlidingWindowInverse`; d more with `beta2`.

    With `beta2`, D = √v̂ + 1e-8, the windows store D^−½g, each with the D of its step, and the step is D^−½F̂⁻¹D^−½g with
    F̂ = λI + (1/n)Σ D^−½g gᵀD^−½: that is F⁻¹g for F = λD + (1/n)Σ g gᵀ as long as D changes little within a window.

    Accuracy: ‖g − Fx‖ ≤ 30 eps ‖F‖ ‖x‖ for x = F⁻¹g. Windows of 16-bit parameters store 16-bit gradients;
    F⁻¹g, momentum and √v̂ are float32.

    A gradient of zeros counts: it is stored in the window, and changes F by the divisor only.

    `state_dict` has all that the next step depends on, in tensors, numbers and strings that `torch.load` accepts with
    ``weights_only=True``; training resumed from it is the same to the bit. Windows are in the state of parameters, so
    that `torch.distributed.checkpoint` and hooks of state dictionaries include them.

    Momentum of gradients is a combination of stored gradients, F⁻¹Gᵀc, without state of its own and in the passes of a
    step, but for two more where Gᵀc needs a sweep that g does not. Gradients that were appended to `windows` are in it,
    and with `compression` it is that of the compressed ones.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 3.2 (the dynamic algorithm).
    .. [2] I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization",
       ICLR 2019, arXiv:1711.05101.
    .. [3] D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization",
       ICLR 2015, arXiv:1412.6980: v̂.

    Examples
    --------
    >>> import torch
    >>> from mfac_linalg.torch import MFAC
    >>> _ = torch.manual_seed(0)
    >>> model, x = torch.nn.Linear(4, 1), torch.randn(64, 4)
    >>> y = x @ torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    >>> optimizer = MFAC(model.parameters(), lr=0.05, window=16)
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.mse_loss(model(x), y)
    ...     loss.backward()
    ...     _ = optimizer.step()
    >>> torch.round(model.weight.detach(), decimals=2)
    tensor([[1., 2., 3., 4.]])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        window: int = 128,
        damping: float = 1.0,
        beta2: float | None = 0.999,
        momentum: float = 0.9,
        momentum_of: str = "steps",
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        masks: Masks = None,
        shared_window: bool = False,
        normalization: str = "window",
        precision: str = "default",
        compression: TopK | None = None,
    ) -> None:
        check.flag("shared_window", shared_window)
        self._shared_window = shared_window
        checked = WindowOptions.checked(1, 1, normalization, 1.0, precision, compression)
        self._window_options = {name: getattr(checked, name) for name in ("normalization", "precision", "compression")}
        self._active = ActiveWeights(masks)
        self._has_moments: list[bool] = []  # of each group: moments scale the gradients in its window
        defaults = {
            "lr": lr,
            "window": window,
            "damping": damping,
            "beta2": beta2,
            "momentum": momentum,
            "momentum_of": momentum_of,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(check_params(params), defaults)
        self._active.check_all_optimized(chain.from_iterable(group["params"] for group in self.param_groups))

    @property
    def windows(self) -> tuple[SlidingWindowInverse, ...]:
        """The window of each group, or the shared one, for queries; a gradient appended to it is in F of the next step.

        With `beta2` it is F̂⁻¹ of the notes, in coordinates in which the damping is λ.
        """
        require_groups(self.param_groups)
        return tuple(self._window(groups) for groups in self._groups_by_window())

    _repr_html_ = as_html

    def add_param_group(self, param_group: Group) -> None:
        """Add a group with a window of its own, or to the shared window as long as that has no gradients.

        Parameters
        ----------
        param_group : dict
            ``{"params": parameters}``, and options of the group, as for every optimizer of PyTorch.

        Raises
        ------
        TypeError, ValueError
            As the constructor; a group of parameters that another has; a shared window that has gradients.

        Notes
        -----
        Cost: memory for its window is taken at its first step.

        Examples
        --------
        >>> import torch
        >>> from mfac_linalg.torch import MFAC
        >>> body, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
        >>> optimizer = MFAC(body.parameters(), lr=1e-3, window=16)
        >>> optimizer.add_param_group({"params": list(head.parameters()), "lr": 1e-4, "window": 8})
        >>> [window.dim for window in optimizer.windows]
        [15, 4]
        """
        require_groups(self.param_groups)
        if self._shared_window and self.param_groups and len(self._window(self.param_groups)):
            msg = "`param_group` must come before the first step of a shared window; got one after it. Its "
            msg += "gradients have no entries for it. Construct a new optimizer, or leave shared_window out."
            raise ValueError(msg)
        super().add_param_group(check_group(param_group, {p for group in self.param_groups for p in group["params"]}))
        try:
            normalize_options(self.param_groups[-1:])
            groups = self._groups_by_window()[-1]
            window = self._empty_window(groups)
        except BaseException:
            self.param_groups.pop()
            raise
        self._store_window(groups, window)
        self._has_moments = has_moments(self.param_groups)

    def _groups_by_window(self) -> list[list[Group]]:
        """For each window the groups whose gradients it stores."""
        return [self.param_groups] if self._shared_window else [[group] for group in self.param_groups]

    def _layout(self, groups: list[Group]) -> WindowLayout:
        return WindowLayout([p for group in groups for p in group["params"]], self._active)

    def _window(self, groups: list[Group]) -> SlidingWindowInverse:
        """The window of these groups, which is in the state of one of their parameters."""
        for p in (p for group in groups for p in group["params"]):
            if "window" in (state := self.state.get(p, NO_STATE)):
                if not isinstance(state["window"], SlidingWindowInverse):  # packed, as in a state dictionary
                    layout = self._layout(groups)
                    state["window"] = unpack_window(state["window"], layout.like, layout.dim, self._window_options)
                return state["window"]
        window = self._empty_window(groups)
        self._store_window(groups, window)
        return window

    def _empty_window(self, groups: list[Group]) -> SlidingWindowInverse:
        """A new window for groups with the same `window` and `damping`."""
        for name in ("window", "damping"):
            agreed(name, groups)
        momentum_of_gradients(groups)
        layout = self._layout(groups)
        check_parameters(layout.parameters)
        capacity, damping = groups[0]["window"], float(groups[0]["damping"])
        return SlidingWindowInverse(capacity, layout.dim, damping, **self._window_options)

    def _store_window(self, groups: list[Group], window: SlidingWindowInverse) -> None:
        """Put a window into the state of one parameter, and add all keys of later steps to the state of all.

        PyTorch's distributed checkpoints step with gradients of zeros where there is no state, and read the keys that
        the state of a parameter has.
        """
        layout = self._layout(groups)
        for p, offset in layout.offsets.items():
            self.state[p].pop("window", None)
            self.state[p].update({"offset": offset, "momentum_buffer": self.state[p].get("momentum_buffer")})
        for p in (p for group in groups if group["beta2"] is not None for p in group["params"]):
            self.state[p].setdefault("root_mean_square", None)
            self.state[p].setdefault("share", 0.0)
        if layout.parameters:
            self.state[layout.holder]["window"] = window

    # --- a step -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure returns, which may evaluate the model again.

        Parameters
        ----------
        closure : callable, optional
            Called first, with gradients enabled.

        Returns
        -------
        object
            What the closure returned; None without one.

        Raises
        ------
        TypeError
            A closure that is not a function; sparse gradients.
        ValueError
            Gradients with nan or infinity; groups or options that were changed in a way that the windows cannot follow.

        Notes
        -----
        Cost: two passes over the stored gradients and O(m²); see the class.

        Examples
        --------
        >>> import torch
        >>> from mfac_linalg.torch import MFAC
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = MFAC([w], lr=1.0, beta2=None, momentum=0.0, normalization="mean")
        >>> w.square().sum().div(2).backward()  # g = w
        >>> optimizer.step()  # the first is −g/(λ + ‖g‖²), λ = 1
        >>> w.detach() / torch.tensor([3.0, 4.0])
        tensor([0.9615, 0.9615])
        """
        loss = None
        if not (closure is None or callable(closure)):
            msg = f"`closure` must be a function without arguments; got {check.describe(closure)}. Leave it out."
            raise TypeError(msg)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        normalize_options(self.param_groups)
        if len(self.param_groups) != len(self._has_moments):
            msg = f"`param_groups` must be those of the constructor and add_param_group, {len(self._has_moments)}; got "
            raise ValueError(msg + f"{len(self.param_groups)}. Construct a new optimizer.")
        if has_moments(self.param_groups) != self._has_moments:
            msg = "`beta2` must stay None, or a number; got a group in which it does not. The stored gradients "
            raise ValueError(msg + "would have other units. Construct a new optimizer.")
        pairs = [(groups, scaled_gradient(groups, self._active, self.state)) for groups in self._groups_by_window()]
        moving = [(self._window(groups), groups, gradient) for groups, gradient in pairs if gradient]
        with _all_or_none([window for window, _, _ in moving]):
            solutions = [append_and_solve(window, groups, gradient.g) for window, groups, gradient in moving]
            updates = [
                apply_step(groups, self._active, self.state, gradient, x)
                for (_, groups, gradient), x in zip(moving, solutions, strict=True)
            ]
        for p, entries in chain.from_iterable(update.items() for update in updates):
            self.state[p].update(entries)
        forget_cached_weights()
        return loss

    # --- state dictionaries -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that the next step depends on, in PyTorch's form.

        The state of a parameter has its momentum and moment, and that of one in each group its window, in tensors and
        numbers whose shapes never change. ``"windows"`` describes the parameters and options of each window.

        Returns
        -------
        dict
            "state", "param_groups" and "windows".

        Notes
        -----
        Cost: a copy of the windows, O(dm).

        Examples
        --------
        >>> import torch
        >>> from mfac_linalg.torch import MFAC
        >>> optimizer = MFAC(torch.nn.Linear(4, 1).parameters(), window=16)
        >>> sorted(optimizer.state_dict())
        ['param_groups', 'state', 'windows']
        """
        normalize_options(self.param_groups)
        # after the hooks that run before, and before those that see the dictionary
        handle = self.register_state_dict_post_hook(lambda _, packed: self._complete(packed), prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def _complete(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """PyTorch's dictionary with the windows."""
        pairs: list[tuple[WindowLayout, SlidingWindowInverse | None]] = []
        for groups in self._groups_by_window():
            layout, window = self._layout(groups), self._window(groups)
            self._store_window(groups, window)  # another parameter may be trained now
            pairs.append((layout, window if layout.parameters else None))
        return complete_state(state_dict, self.param_groups, pairs, self._window_options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned: the options of groups, the momenta and moments, the windows.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` returned, or what `torch.load` made of it.

        Raises
        ------
        TypeError, ValueError
            Not such a dictionary, or one of other parameters, masks, or options that groups do not have. The
            optimizer is unchanged.

        Notes
        -----
        Cost: a copy of the windows, O(dm), and a product with each.

        Examples
        --------
        >>> import io, torch
        >>> from mfac_linalg.torch import MFAC
        >>> model, file = torch.nn.Linear(4, 1), io.BytesIO()
        >>> optimizer, other = MFAC(model.parameters()), MFAC(model.parameters())
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> torch.save(optimizer.state_dict(), file)
        >>> _ = file.seek(0)
        >>> other.load_state_dict(torch.load(file, weights_only=True))
        >>> torch.equal(other.windows[0].gradients, optimizer.windows[0].gradients)
        True
        """
        loaded: list[Loaded] = []

        def read(_: Optimizer, given: Any) -> dict[str, Any]:
            layouts = [self._layout(groups) for groups in self._groups_by_window()]
            loaded.append(read_state(given, self.param_groups, layouts, self._window_options))
            return loaded[-1].rest  # PyTorch would cast the others to the dtype of the parameters

        if not isinstance(state_dict, Mapping):
            msg = f"`state_dict` must be a dictionary; got {check.describe(state_dict)}. Pass what state_dict returned."
            raise TypeError(msg)
        require_groups(self.param_groups, ())
        # after the hooks that may change the dictionary, and before those that see the optimizer loaded
        handles = (
            self.register_load_state_dict_pre_hook(read),
            self.register_load_state_dict_post_hook(lambda _: self._adopt(loaded[-1]), prepend=True),
        )
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            for handle in handles:
                handle.remove()

    def _adopt(self, loaded: Loaded) -> None:
        """Add the checked buffers and windows to the state that PyTorch has loaded."""
        for p, buffers in loaded.buffers.items():
            self.state[p].update(buffers)
        for groups, window in zip(self._groups_by_window(), loaded.windows, strict=True):
            if window is not None:
                self._store_window(groups, window)
        self._has_moments = has_moments(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: vars(self)[name] for name in ("_shared_window", "_window_options", "_active", "_has_moments")}
        return {**super().__getstate__(), **own}


@contextmanager
def _all_or_none(windows: list[SlidingWindowInverse]) -> Iterator[None]:
    """Restore all windows if a step fails: it changes the damping and one gradient at most, as snapshots allow."""
    snapshots = [window._snapshot() for window in windows]
    try:
        yield
    except BaseException:
        for window, snapshot in zip(windows, snapshots, strict=True):
            window._restore(snapshot)
        raise
