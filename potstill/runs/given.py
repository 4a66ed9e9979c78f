"""What a call in Python was given → settings, and the data where they are at hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from potstill.bounds import changed
from potstill.data import dataset as datasets
from potstill.data import memory, own_augment
from potstill.data.dataset import Dataset
from potstill.data.distilled import Distilled
from potstill.data.own_augment import Augment
from potstill.errors import PotstillError
from potstill.evaluation.evaluator import Network, network_for, operations_for
from potstill.evaluation.protocol import EvaluationConfig
from potstill.networks.architectures import NetworkConfig, is_own, own_network
from potstill.runs.run import prepare_problem, reading_of
from potstill.runs.settings import Settings, configure, from_dict
from potstill.training.problem import Problem


def asked(
    data: Any, test: Any, ipc: int | None, preset: str | None, network: Network | None, changes: Mapping[str, Any]
) -> tuple[Settings, Dataset | None]:
    """The settings of a run, and its data where they were given in memory or a user's own network had to see them.

    Settings name data in memory by their contents and a user's own network by what it computes, so that a run that is
    continued with others is refused like one with other settings.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    changes = dict(changes)
    if data is None:
        data = changes.pop("dataset", None)  # as it was named in 0.2.0
    augment = changes.pop("augment") if own_augment.has_function(changes.get("augment", ())) else None
    held = data is not None and datasets.in_memory(data)
    function = network if callable(network) else None
    if network is not None and function is None:
        changes["network"] = {"name": network} if isinstance(network, str) else network
    settings = configure(memory.NAME if held else data, ipc, preset, changes)
    if not held and function is None and test is None and augment is None:
        return settings, None
    found = datasets.load(data if held else settings.dataset, test=test, **reading_of(settings))
    if held:
        settings = replace(settings, dataset=datasets.name_in_settings(found))
    if function is not None:
        settings = replace(settings, network=own_network(function, found.shape, len(found.classes)))
    if augment is not None:
        settings = changed(settings, {"augment": own_augment.names(augment, found.shape)})
    return settings, found


def evaluation_of(
    distilled: Distilled, data: Any, test: Any, network: Network | None, augment: Augment | None,
    changes: Mapping[str, Any],
) -> tuple[Settings, Problem, NetworkConfig]:  # fmt: skip
    """How a finished set is evaluated: the settings it was made with, its data, and the network to train.

    Raises:
        PotstillError: with the value, the reason and the remedy.
    """
    device = changes.get("device")
    evaluation = changed(EvaluationConfig(), {k: v for k, v in changes.items() if k != "device"}, "evaluation.")
    check_protocol(evaluation)
    settings = replace(from_dict(distilled.provenance["config"]), evaluation=evaluation)
    settings = changed(settings, {"device": "auto" if device is None else device})
    settings = replace(settings, augment=operations_for(distilled, augment))
    chosen = network_for(distilled, network)
    if is_own(settings.network) and network is not None:  # whose function may not be known here
        settings = replace(settings, network=chosen)
    found = None
    if data is not None:
        found = datasets.load(data, test=test, **reading_of(settings))
    return settings, problem_of(distilled, settings, found), chosen


def check_protocol(evaluation: EvaluationConfig) -> None:
    """Refuse the protocol that cannot evaluate a finished set.

    Raises:
        PotstillError: it is "paper".
    """
    if evaluation.selection == "test":
        raise PotstillError(
            "protocol paper: it chooses the set on test data while distilling, so a finished set cannot be evaluated "
            "by it; give it to `potstill run`, or evaluate by --protocol standard."
        )


def problem_of(distilled: Distilled, settings: Settings, data: Dataset | None = None) -> Problem:
    """The data that a set was distilled from, with its transform.

    Raises:
        PotstillError: these are other data.
    """
    problem = prepare_problem(settings, data)
    if problem.dataset.fingerprint != distilled.provenance["dataset"]["fingerprint"]:
        raise PotstillError(
            f"{problem.dataset.name if data else settings.dataset}: is not the data this set was distilled from "
            f"(fingerprint {problem.dataset.fingerprint}, not {distilled.provenance['dataset']['fingerprint']}); give "
            "the original data by --dataset."
        )
    return replace(problem, transform=distilled.transform)
