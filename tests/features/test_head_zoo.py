"""The heads of networks that nobody here wrote are found, or refused where there is not one."""

from __future__ import annotations

import pytest

from head_zoo import ZOO, found
from ncmonitor import FeatureTap

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages about themselves


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_head_is_found_and_its_weight_gives_what_the_model_returns(name: str) -> None:
    entry = ZOO[name]
    tap = found(entry)
    if entry.head is None:
        assert not isinstance(tap, FeatureTap)
        assert "no linear layer makes what the model returns" in str(tap)
    else:
        assert isinstance(tap, FeatureTap), tap
        assert tap.name == entry.head


@pytest.mark.slow
def test_the_zoo_is_as_wide_as_it_claims() -> None:
    sound = [entry for entry in ZOO.values() if entry.head is not None]
    assert len(sound) >= 40
    assert len({entry.family for entry in sound}) >= 25
