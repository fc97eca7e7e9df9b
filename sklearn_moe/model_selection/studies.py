"""Studies of Optuna: addresses, the states of their trials, and which trial comes first."""

from __future__ import annotations

import math
import re
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from sklearn.utils.validation import check_is_fitted

from sklearn_moe.documentation import Documented
from sklearn_moe.model_selection.selection import LOG_LIKELIHOOD

if TYPE_CHECKING:
    import optuna
    import pandas as pd

_SECRET_OF_USER = re.compile(r"(://[^:/?@]*:)(.*)(?=@)")
_SECRET_OF_QUERY = re.compile(
    r"((?:passw(?:or)?d|pwd|secret|token)(?:=|%3D))(.+?)(?=&|;|%3B|$)", re.IGNORECASE
)


def load_optuna() -> None:
    """Import Optuna for the first time, which takes long, so that later imports are silent.

    It imports bars of tqdm, which warn in a notebook without ipywidgets even if none is drawn.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        import optuna  # noqa: F401


class Address(str):
    """The address of a database; its repr hides the password."""

    def masked(self) -> Address:
        """Return the address with stars for its password."""
        text = _SECRET_OF_USER.sub(r"\1***", self)
        return Address(_SECRET_OF_QUERY.sub(r"\1***", text))

    def hide(self, text: str) -> str:
        """Return a text with stars for the password of this address."""
        found = [*_SECRET_OF_USER.findall(self), *_SECRET_OF_QUERY.findall(self)]
        secrets = {secret for _, secret in found}
        # Parts of an unquoted password are taken for the host, and errors may show them.
        secrets |= {part for each in secrets for part in re.split("[@/:]", each) if len(part) > 1}
        secrets |= {unquote(each) for each in secrets}
        for secret in sorted(secrets - {""}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def __repr__(self) -> str:
        return str.__repr__(self.masked())


def as_address(storage):
    """Make an address hide its password; anything else is returned as it is."""
    return Address(storage) if type(storage) is str and "://" in storage else storage


def connection_error(storage: Any, name: str | None, error: Exception) -> ConnectionError:
    """Return an error that says, without passwords, why the storage of a study fails."""
    error = error.__cause__ or error
    reason = str(getattr(error, "orig", None) or error)  # SQLAlchemy adds the statement
    if isinstance(storage, Address):
        reason = storage.hide(reason)
    return ConnectionError(
        f"The study {name!r} in storage={storage!r} can't be opened, read or written: {reason}"
    )


def open_study(
    where: Any, study_name: str | None, pruner: Any, shape: dict[str, Any]
) -> optuna.Study:
    """Return the study of this name; create it if there is none.

    Parameters
    ----------
    where : Address, path, optuna storage or None
        Where the study is stored; None means in memory.
    study_name : str or None
        Name of the study.
    pruner : optuna pruner
        The pruner of its trials.
    shape : dict
        The folds, scores and data of its trials. If those of an existing study are others, a
        ValueError is raised.
    """
    import optuna

    from sklearn_moe.model_selection.storages import open_storage

    if isinstance(where, Address) and "***" in where:
        raise ValueError(
            f"storage={where!r} has lost its password in a pickle. Set it again with "
            "set_params(storage=...)."
        )
    for pause in (0.2, 1.0, None):  # another process may be creating it
        try:
            study = optuna.create_study(
                storage=open_storage(where),
                study_name=study_name,
                directions=["maximize"] * len(shape["scores"]),
                sampler=optuna.samplers.RandomSampler(0),  # the search sets another
                pruner=pruner,
                load_if_exists=True,
            )
            if not study.trials and "shape" not in study.user_attrs:
                study.set_user_attr("shape", shape)
            break
        except Exception as error:
            if pause is None:
                raise connection_error(where, study_name, error) from None
            time.sleep(pause)
    directions = {direction.name for direction in study.directions}
    if study.user_attrs.get("shape") != shape or directions != {"MAXIMIZE"}:
        raise ValueError(
            f"The study {study_name!r} has trials of {study.user_attrs.get('shape')}, "
            f"but this search is one of {shape}. Take another study_name."
        )
    return study


def file_name(study_name: str) -> str:
    """Return the file name of a study; characters with a meaning in paths become codes."""
    return re.sub(r"^\.|[^\w .,+=@()-]", lambda m: f"%{ord(m[0]):02X}", study_name) + ".db"


@contextmanager
def quiet_optuna():
    """Hide Optuna's lines about each trial, and its warnings about experimental features."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def in_memory(study: optuna.Study) -> optuna.Study:
    """Return a copy of a study that needs no storage."""
    import optuna

    with quiet_optuna():
        copy = optuna.create_study(study_name=study.study_name, directions=study.directions)
        for name, value in study.user_attrs.items():
            copy.set_user_attr(name, value)
        copy.add_trials(study.get_trials())
    return copy


def n_finished(study: optuna.Study) -> int:
    """Return the number of trials that have ended, without those whose process died."""
    return sum(
        trial.state.name in ("COMPLETE", "PRUNED") or has_error(trial)
        for trial in study.get_trials(deepcopy=False)
    )


def has_error(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial has failed with an error, and not because its process died."""
    return trial.state.name == "FAIL" and "error" in trial.user_attrs


def begins(trial: optuna.Trial) -> bool:
    """Whether a trial is the one that tries the first suggestion.

    This is the first trial; if that dies, it is the first trial after its death. Each trial stores
    the answer when it starts, and none says yes while an older one may still do so. So exactly one
    trial says yes, however many processes there are.
    """
    older = [t for t in trial.study.get_trials(deepcopy=False) if t.number < trial.number]
    answer = all(each.user_attrs.get("begins") is False or _is_dead(each) for each in older)
    trial.set_user_attr("begins", answer)
    return answer


def _is_dead(trial):
    from sklearn_moe.model_selection.storages import GRACE

    if trial.state.name == "RUNNING":  # killed before it stored an answer
        age = time.time() - trial.datetime_start.timestamp()
        return "begins" not in trial.user_attrs and age > GRACE
    return trial.state.name == "FAIL" and not has_error(trial)


def wait_for_beginning(study: optuna.Study, n_trials: int, deadline: float) -> None:
    """Wait before the last trial while the trial with the first suggestion may be dead.

    After some time it is known to be alive or dead. If it is dead, the last trial replaces it.
    """
    import optuna

    from sklearn_moe.model_selection.storages import GRACE, HEARTBEAT

    deadline = min(deadline, time.time() + GRACE + HEARTBEAT)
    while n_finished(study) == n_trials - 1 and time.time() < deadline:
        if not any(
            trial.state.name == "RUNNING" and trial.user_attrs.get("begins")
            for trial in study.get_trials(deepcopy=False)
        ):
            return
        optuna.storages.fail_stale_trials(study)
        time.sleep(0.5)


class KeepsStudy(Documented):
    """What a search does with its study: where it is stored, how it is pickled and shown."""

    study_: optuna.Study

    @property
    def storage(self) -> Any:
        # The value itself hides its password, wherever the parameters are shown.
        return vars(self)["storage"]

    @storage.setter
    def storage(self, storage: Any) -> None:
        vars(self)["storage"] = as_address(storage)

    def __getstate__(self):
        """Leave out the storage: a pickle holds the trials, but no password and no connection.

        A search that is not fitted keeps everything, because it may be fitted elsewhere.
        """
        state = super().__getstate__().copy()
        if "study_" in state:
            state["study_"] = in_memory(state["study_"])
            storage = state["storage"]
            storage = getattr(storage, "_backend", storage)  # Optuna may have wrapped a database
            storage = as_address(getattr(storage, "url", state["storage"]))
            state["storage"] = storage.masked() if isinstance(storage, Address) else storage
        return state

    def trials_dataframe(self) -> pd.DataFrame:
        """Return all trials of the study; needs pandas.

        ``value`` is what compares the trials. Where this is the log-likelihood, ``score`` is the
        accuracy. Only complete trials have them. The last value that a pruned trial reported is in
        ``study_.trials``.
        """
        check_is_fitted(self, "study_")
        frame = self.study_.trials_dataframe()
        values = [name for name in frame if re.fullmatch("values?(_.*)?", name)]
        frame.loc[frame["state"] != "COMPLETE", values] = math.nan
        results = getattr(self, "cv_results_", {})
        if f"mean_test_{LOG_LIKELIHOOD}" in results:
            accuracy = dict(zip(results["trial"], results["mean_test_score"], strict=True))
            frame.insert(2, "score", frame["number"].map(accuracy))
        return frame

    def _where(self):
        """Return the storage of the study; None means in memory."""
        from sklearn_moe.model_selection.storages import is_in_memory

        storage = self.storage
        if storage is None and self.study_name is not None:
            return Path(file_name(self.study_name))
        return None if isinstance(storage, str) and is_in_memory(storage) else storage
