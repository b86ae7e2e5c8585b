"""What can be measured, one file per question."""

from __future__ import annotations

from collections.abc import Mapping

from bench.scenario import Scenario
from bench.scenarios import five_step, noop

SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in (five_step.SCENARIO, noop.SCENARIO)}
