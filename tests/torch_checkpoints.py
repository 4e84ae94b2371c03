"""What the tests of checkpoints of PyTorch's optimizer share."""

import pytest

from tests.source import REPOSITORY
from tests.torch_optimizer import (
    MFAC,
    OPTIONS,
    run_steps,
)

torch = pytest.importorskip("torch")
pytest.importorskip("mfac_linalg.torch")
dist = pytest.importorskip("torch.distributed")
dcp = pytest.importorskip("torch.distributed.checkpoint")
api = pytest.importorskip("torch.distributed.checkpoint.state_dict")
nn = torch.nn
FIRST = torch.load(REPOSITORY / "tests" / "files" / "mfac_states_1.pt", weights_only=True)
"""States as version 1 wrote them, with the parameters then and after four more steps."""


class Model(nn.Module):
    """Parameters with names."""

    def __init__(self, params):
        super().__init__()
        self.params = nn.ParameterList(params)


def start_optimizer(params, steps=4):
    optimizer = MFAC(params, momentum=0.5, **OPTIONS)
    run_steps(optimizer, params, steps)
    return optimizer
