"""What every test shares: one thread, and hypothesis without chance or clock."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    phases=[Phase.explicit, Phase.generate],  # "search" also shrinks, which takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile(
    "search", parent=settings.get_profile("ci"), derandomize=False, max_examples=1000, phases=list(Phase)
)
settings.load_profile("ci")
torch.set_num_threads(1)
logging.getLogger("torch.__trace").disabled = True  # thousands of lines in the report of any failure


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow and long tests run only when ``-m`` names them."""
    named = str(config.getoption("-m"))
    for marker in ("slow", "long"):
        for item in () if marker in named else items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: run with -m {marker}"))
