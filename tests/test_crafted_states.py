"""State dictionaries with forged contents: refused by name, or the answers are those of the contents."""

import hashlib
import io
import math
import tracemalloc
import warnings

import numpy as np
import pytest

import mfac_linalg as ml
from tests import crafted_outcomes
from tests.crafted import as_npy, describe_array, write_parts
from tests.crafted_outcomes import ALL, ARRAYS, VALUES, assert_refused, assert_right
from tests.stored import vector, window

parts = crafted_outcomes.parts
path = crafted_outcomes.path
STATE_VALUES = (*VALUES, np.nan, np.inf, -np.inf, object(), np.ones(3), np.ones((4, 12), "float32"), np.array(2.0))


@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
@pytest.mark.parametrize("compression", [None, ml.TopK(0.5, block_size=5)], ids=["whole", "compressed"])
def test_a_state_with_anything_made_up_is_refused_by_name_or_answered_as_it_says(compression):
    state, wrong = window(compression).state_dict(), []
    for name, before in state.items():
        values = [*STATE_VALUES]
        if isinstance(before, np.ndarray):
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values += [change(before) for change in ARRAYS.values() if change]
        for value in values[:: 1 if ALL else 2]:
            try:
                assert_right(ml.SlidingWindowInverse.from_state_dict({**state, name: value}))
            except (TypeError, ValueError) as refused:
                if name not in str(refused):
                    wrong.append(f"{name} = {value!r:.40}: {type(refused).__name__} {refused!s:.200}")
            except BaseException as failure:
                wrong.append(f"{name} = {value!r:.40}: {type(failure).__name__} {failure!s:.200}")
        rest = {n: x for n, x in state.items() if n != name}
        if name != "compression":  # which may be left out
            with pytest.raises(ValueError, match=name):
                ml.SlidingWindowInverse.from_state_dict(rest)
    assert not wrong, "\n".join(wrong)


def test_a_compression_stands_in_a_dictionary_of_its_own_or_beside_the_rest():
    state = window(ml.TopK(0.5, block_size=5)).state_dict()
    nested = {name.removeprefix("compression."): x for name, x in state.items() if name.startswith("compression.")}
    nested = nested or state["compression"]
    rest = {name: x for name, x in state.items() if not name.startswith("compression")}
    flat = {f"compression.{name}": x for name, x in nested.items() if x is not None}
    for form in ({"compression": nested}, flat):
        found = ml.SlidingWindowInverse.from_state_dict({**rest, **form})
        assert np.array_equal(found.matvec(vector()), window(ml.TopK(0.5, block_size=5)).matvec(vector()))


@pytest.mark.parametrize("size", [10**6, 10**30])
def test_a_window_that_no_memory_holds_is_refused_by_name(size):
    for place in ({}, {"xp": np}):
        with pytest.raises(ValueError, match="`window` must "):
            ml.SlidingWindowInverse(size, 6, 0.1, **place)
        with pytest.raises(ValueError, match="`dim` must "):
            ml.SlidingWindowInverse(2, 10**30, 0.1, **place)


@pytest.mark.parametrize("shape", [(2**50,), (2**25, 2**25), (2**61,), (2**33,)], ids=str)
def test_no_memory_is_taken_for_an_array_that_is_shorter_than_its_header_says(shape, path, parts):
    """Both the archive's header and the array's own say so, and neither is believed."""
    header, arrays = parts
    told = {n: describe_array(x, as_npy(x)) for n, x in arrays.items()}
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    content = file.getvalue() + bytes(64)
    told["weights"] = {"shape": list(shape), "dtype": "float64", "sha256": hashlib.sha256(content).hexdigest()}
    rest = {n: x for n, x in arrays.items() if n != "weights"}
    write_parts(path, {**header, "arrays": told}, rest, describe=False, members=(("weights.npy", content),))
    tracemalloc.start()
    assert_refused(path, "weights is not as long as the header says")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def replaced_at(state, keys, value):
    """A state dictionary with another value under some keys, one in the other."""
    return value if not keys else {**state, keys[0]: replaced_at(state[keys[0]], keys[1:], value)}


def leaves(state, keys=()):
    """The keys of what is no dictionary, and its values."""
    for name, value in state.items():
        yield from (leaves(value, (*keys, name)) if isinstance(value, dict) else [((*keys, name), value)])


@pytest.mark.parametrize("compressed", [False, True])
def test_an_optimizers_state_with_anything_made_up_is_refused_or_taken(compressed):
    torch = pytest.importorskip("torch", reason="needs torch")
    from mfac_linalg.torch import MFAC

    def make_optimizer():
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        compression = ml.TopK(0.5, block_size=3) if compressed else None
        return weights, MFAC([weights], lr=0.1, window=3, damping=0.1, momentum=0.9, compression=compression)

    weights, optimizer = make_optimizer()
    for step in range(5):
        weights.grad = torch.sin(torch.arange(6.0) * 1.3 + step)
        optimizer.step()
    state, wrong = optimizer.state_dict(), []
    values = (*VALUES, math.nan, torch.ones(3), torch.full((2, 2), math.nan), torch.ones(3, dtype=torch.float64))
    for keys, before in leaves(state["state"]):
        changed = []
        if isinstance(before, torch.Tensor) and before.ndim and before.is_floating_point():
            changed = [2 * before, -before, before[:-1], before * math.nan]
        for value in [*values[:: 1 if ALL else 4], *values[-4:], *changed]:
            weights, optimizer = make_optimizer()
            try:
                optimizer.load_state_dict({**state, "state": replaced_at(state["state"], keys, value)})
            except (TypeError, ValueError) as refused:
                if "state" not in str(refused) and keys[-1] not in str(refused):
                    wrong.append(f"{keys} = {value!r:.40}: {refused!s:.200}")
            except BaseException as failure:
                wrong.append(f"{keys} = {value!r:.40}: {type(failure).__name__} {failure!s:.200}")
    assert not wrong, "\n".join(wrong)
