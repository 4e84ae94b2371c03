"""Ambient modes of the libraries, and what rightly differs in them."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.ambient_queries import close, same


@contextlib.contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    """A global setting of a library for some time."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def numpy_modes() -> dict[str, Callable[[], Any]]:
    """Error states, how numbers are printed, buffers; none of them may be seen in an answer."""
    return {
        "errstate raise": lambda: np.errstate(all="raise"),
        "errstate call": lambda: np.errstate(all="call", call=_refuse),
        "seterr": lambda: setting(np.geterr, lambda x: np.seterr(**x), dict.fromkeys(np.geterr(), "raise")),
        "legacy printing": lambda: np.printoptions(legacy="1.13", precision=1, threshold=1, floatmode="fixed"),
        "errstate log": lambda: np.errstate(all="log", call=_Log()),
        "bufsize": lambda: setting(np.getbufsize, np.setbufsize, 2**14),  # smaller ones cut sums, before NumPy 2.3
        "warnings": warnings_as_errors,
    }


class _Log:
    def write(self, text: str) -> None:
        raise FloatingPointError(text)


def _refuse(kind: str, flag: int) -> None:
    raise FloatingPointError(kind, flag)


def torch_modes() -> dict[str, Callable[[], Any]]:
    """Casts, what is recorded, defaults of factories, checks, hooks."""
    import torch
    from torch._functorch import eager_transforms
    from torch._functorch.vmap import vmap_increment_nesting
    from torch.utils._python_dispatch import TorchDispatchMode

    def deterministic() -> Any:
        return setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)

    def default_device(device: Any) -> Any:
        return setting(torch.get_default_device, torch.set_default_device, device)

    @contextlib.contextmanager
    def nested() -> Iterator[None]:
        with torch.autocast("cpu", torch.float16), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            yield

    def default_dtype(dtype: Any) -> Any:
        return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)

    def precision(name: str) -> Any:
        return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, name)

    class Calls(torch.overrides.TorchFunctionMode):
        """Sees every call, and changes none."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    class Operations(TorchDispatchMode):
        """The same, below autograd."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    def onednn(name: str) -> Any:
        return setting(lambda: matmul.fp32_precision, lambda x: setattr(matmul, "fp32_precision", x), name)

    def warned(always: bool) -> Any:
        return setting(torch.is_warn_always_enabled, torch.set_warn_always, always)

    def printing(profile: str) -> Any:
        return setting(lambda: "default", lambda x: torch.set_printoptions(profile=x), profile)

    matmul = torch.backends.mkldnn.matmul
    return {
        "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
        "autocast float16": lambda: torch.autocast("cpu", torch.float16),
        "autocast without cache": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        "autocast nested": nested,
        "inference mode": torch.inference_mode,
        "no grad": torch.no_grad,
        "default dtype float64": lambda: default_dtype(torch.float64),
        "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
        "default device": lambda: default_device("meta"),
        "device context": lambda: torch.device("meta"),
        "matmul precision": lambda: precision("medium"),
        "deterministic": deterministic,
        "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
        "saved tensors hooks": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
        "vmap": lambda: vmap_increment_nesting(2, "error"),
        "vmap, other draws": lambda: vmap_increment_nesting(2, "different"),
        "grad": eager_transforms.grad_increment_nesting,
        "jvp": eager_transforms.jvp_increment_nesting,
        "forward derivatives": torch.autograd.forward_ad.dual_level,
        "function mode": Calls,
        "dispatch mode": Operations,
        "no overrides": torch._C.DisableTorchFunctionSubclass,
        "flush denormals": lambda: setting(lambda: False, torch.set_flush_denormal, True),
        "threads": lambda: setting(torch.get_num_threads, torch.set_num_threads, 3),
        "oneDNN bfloat16": lambda: onednn("bf16"),
        "no oneDNN": lambda: setting(lambda: True, lambda x: setattr(torch.backends.mkldnn, "enabled", x), False),
        "no compiler": lambda: torch.compiler.set_stance("force_eager"),
        "saved on the host": torch.autograd.graph.save_on_cpu,
        "no saved tensors hooks": lambda: torch.autograd.graph.disable_saved_tensors_hooks("none"),
        "sparse invariants": torch.sparse.check_sparse_tensor_invariants,
        "forked generators": torch.random.fork_rng,
        "all warnings": lambda: warned(True),
        "short printing": lambda: printing("short"),
        **numpy_modes(),
    }


def jax_modes() -> dict[str, Callable[[], Any]]:
    """Settings of a thread: dtypes, promotion, checks, transfers, randomness, meshes."""
    import jax

    def option(name: str, value: Any) -> Any:
        return setting(lambda: jax.config.values[name], lambda x: jax.config.update(name, x), value)  # of all threads

    def explicit_mesh() -> Any:
        return jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,)))

    @contextlib.contextmanager
    def x64_left() -> Iterator[None]:
        with option("jax_enable_x64", True), jax.enable_x64(False):
            yield

    return {  # those of all threads first: those of one go within them
        "x64 flag": lambda: option("jax_enable_x64", True),
        "x64 flag left": x64_left,
        "float64 by name": lambda: option("jax_explicit_x64_dtypes", "error"),
        "seed offset": lambda: option("jax_random_seed_offset", 7),
        "x64": lambda: jax.enable_x64(True),
        "matmul precision": lambda: jax.default_matmul_precision("bfloat16"),
        "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
        "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
        "nans": lambda: jax.debug_nans(True),
        "infs": lambda: jax.debug_infs(True),
        "no jit": jax.disable_jit,
        "leaks": jax.checking_leaks,
        "transfer guard": lambda: jax.transfer_guard("disallow"),
        "prng": lambda: jax.default_prng_impl("rbg"),
        "threefry": lambda: jax.threefry_partitionable(False),
        "warnings": warnings_as_errors,
        "errstate": lambda: np.errstate(all="raise"),
        "default device": lambda: jax.default_device(jax.devices()[0]),
        "checks": lambda: jax.enable_checks(True),
        "thread guard": lambda: jax.thread_guard(True),
        "garbage collection guard": lambda: jax.array_garbage_collection_guard("log"),
        "log compiles": lambda: jax.log_compiles(True),
        "no raw keys": lambda: jax.legacy_prng_key("error"),
        "typed keys": lambda: jax.enable_custom_prng(True),
        "no tracing": lambda: jax.no_tracing(True),
        "explicit mesh": explicit_mesh,
        "reused keys": lambda: jax.debug_key_reuse(True),
    }


def strict_modes() -> dict[str, Callable[[], Any]]:
    """Features that array-api-strict can leave out."""
    from array_api_strict import ArrayAPIStrictFlags

    return {
        "no boolean indexing": lambda: ArrayAPIStrictFlags(boolean_indexing=False),
        "no data-dependent shapes": lambda: ArrayAPIStrictFlags(data_dependent_shapes=False),
        "2024": lambda: ArrayAPIStrictFlags(api_version="2024.12"),
        "2023": lambda: ArrayAPIStrictFlags(api_version="2023.12"),
        **numpy_modes(),
    }


def dask_modes() -> dict[str, Callable[[], Any]]:
    """Schedulers, in whose threads tasks run, and options of arrays."""
    import dask

    return {
        "synchronous": lambda: dask.config.set(scheduler="synchronous"),
        "threads": lambda: dask.config.set(scheduler="threads"),
        "chunk size": lambda: dask.config.set({"array.chunk-size": "8B"}),
        "large chunks": lambda: dask.config.set({"array.slicing.split-large-chunks": True}),
        "no fusion": lambda: dask.config.set({"optimization.fuse.active": False}),
        "tokens": lambda: dask.config.set({"tokenize.ensure-deterministic": True}),
        **numpy_modes(),
    }


Contexts = dict[str, Callable[[], Any]]
MODES: dict[str, Callable[[], Contexts]] = {
    "numpy": numpy_modes,
    "torch": torch_modes,
    "jax.numpy": jax_modes,
    "array_api_strict": strict_modes,
    "dask.array": dask_modes,
}
ROUNDED = {
    ("threads", ""): "BLAS cuts sums otherwise among three threads",
    ("grad", "pickle"): "what PyTorch unpickles within a transform is bound to it",
    ("grad", "deepcopy"): "what PyTorch copies within a transform is bound to it",
    ("jvp", "pickle"): "as for grad",
    ("jvp", "deepcopy"): "as for grad",
}
"""Modes and queries ("": all) whose answers are rightly the same to rounding only, with the reason."""
REFUSED = {"no tracing": ("no_tracing", "whoever sets it wants to be told of what is not compiled yet")}
"""Modes in which a library rightly refuses some queries, with a word of its refusal, and the reason."""
SINGLE = {
    "numpy": ("static", "static, vector damping", "tall", "window", "compressed window", "blocks", "streamed"),
    "torch": ("static", "static, vector damping", "tall", "window", "compressed window", "blocks"),
    "jax.numpy": ("static, vector damping",),
    "array_api_strict": ("static, vector damping", "tall", "window", "blocks"),
    "dask.array": ("static",),
}
"""The classes that every mode is tried on by itself in the table of every run."""
SELDOM = {
    "torch": {
        "dispatch mode",
        "no overrides",
        "oneDNN bfloat16",
        "no oneDNN",
        "no compiler",
        "saved on the host",
        "no saved tensors hooks",
        "sparse invariants",
        "forked generators",
        "all warnings",
        "short printing",
        *numpy_modes(),
    },
}
"""Modes that it tries by themselves on the first of these classes only; ``tests/ambient_sweep.py`` tries all on all."""
DEAR = {"jax.numpy": {"no tracing", "explicit mesh", "seed offset", "reused keys", "float64 by name", "checks"}}
"""Modes that are tried there only: in them JAX compiles everything again, or refuses to."""


def at_once(library: str) -> Contexts:
    """All modes of a library that go together, one after the other."""
    left_out = {"errstate call", "errstate log", "default device", "no jit", "autocast nested", "synchronous", "2023"}
    left_out |= {
        "x64 flag left",
        "no raw keys",
        "threads",
        "vmap, other draws",
        "grad",
        "jvp",
        "no saved tensors hooks",
        "saved on the host",
    }

    @contextlib.contextmanager
    def together(names: list[str]) -> Iterator[None]:
        modes = numpy_modes() | MODES[library]()
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(modes[name]())
            yield

    left_out |= DEAR.get(library, set())
    return {"all at once": lambda: together([n for n in numpy_modes() | MODES[library]() if n not in left_out])}


def agree(got: Any, wanted: Any, mode: str, query: str) -> bool:
    """Whether two answers are the same, to the bit or as `ROUNDED` and `REFUSED` say."""
    rounded = (mode, "") in ROUNDED or (mode, query) in ROUNDED
    refused = mode in REFUSED and isinstance(got, str) and REFUSED[mode][0] in got
    return refused or same(got, wanted) or (rounded and close(got, wanted))
