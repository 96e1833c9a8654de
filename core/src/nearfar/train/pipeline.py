"""Systems in stages: each stage in a folder of its own, done once, repeated only when what it depends on changed.

pipeline = Pipeline("work", [
    Stage("pretrain", train_stage(make_trainer)),
    Stage("cluster", cluster, inputs=("pretrain.run",), options={"num": 100}),
])
pipeline.run(resume=True)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar import distributed
from nearfar.checks import expect, expect_choice
from nearfar.train.artefacts import KINDS, Artefact, TrainedRun, digest
from nearfar.train.run import write_json

if TYPE_CHECKING:
    from nearfar.train.trainer import Trainer

SCHEMA = 1
DONE = "done.json"


@dataclass(frozen=True)
class Context:
    """What a stage works with.

    Args:
        folder: the stage's own, there already.
        inputs: artefacts it asked for, by "stage.name".
        options: its own.
        resume: whether the folder holds what an earlier, unfinished try of the very same stage left.
    """

    folder: Path
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    resume: bool = False


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Args:
        name: letters, digits, - and _.
        run: does the work and returns artefacts by name.
        inputs: artefacts of earlier stages, as "stage.name".
        options: plain values the work depends on (a dataclass, a recipe or a dictionary); part of the stage's identity.
    """

    name: str
    run: Callable[[Context], Mapping[str, Artefact]]
    inputs: tuple[str, ...] = ()
    options: Any = field(default_factory=dict)


class Pipeline:
    """Stages in order. Over several processes, whose group is there already, each does a stage's work and the first
    one writes; they share the folder.

    Args:
        folder: where each stage has a folder; `done.json` in it names options, inputs and outputs by hash.
        stages: in the order in which they run; a stage's inputs come from earlier ones.

    Raises:
        ValueError: two stages of one name, or an input that no earlier stage can have left.
    """

    def __init__(self, folder: str | Path, stages: Sequence[Stage]) -> None:
        self.folder, self.stages = Path(folder), list(stages)
        seen: list[str] = []
        for stage in self.stages:
            plain = stage.name.replace("-", "").replace("_", "").isalnum()
            expect(
                plain and stage.name not in seen, "stage", "names of letters, digits, - and _, each once", stage.name
            )
            for wanted in stage.inputs:
                source, dot, name = wanted.partition(".")
                expect(bool(dot and name) and source in seen, f"stage {stage.name!r}: inputs",
                       f"'stage.name' of an earlier stage ({', '.join(seen) or 'there is none'})", wanted)  # fmt: skip
            seen.append(stage.name)

    def run(self, *, resume: bool = False, start: str = "", only: str = "") -> dict[str, Artefact]:
        """Runs what is to be done and returns every artefact by "stage.name".

        Args:
            resume: keep stages that are done and whose options and inputs are unchanged; let an unfinished one go on.
                Without it the folder must be empty or new.
            start: do this stage and all after it again; earlier ones must be done.
            only: do this stage again, alone; earlier ones must be done, and later ones become out of date.

        Raises:
            ValueError: the folder holds stages and nothing says what to do with them; an unknown stage; a damaged
                artefact, which is named.
        """
        names = [stage.name for stage in self.stages]
        expect(not (start and only), "start, only", "one of them", (start, only))
        for option, value in (("start", start), ("only", only)):
            if value:
                expect_choice(option, value, names)
        again = start or only
        held = [name for name in names if (self._place(name) / DONE).exists()]
        expect(
            bool(resume or again or not held), "folder", "an empty one, or resume", f"{self.folder}, which has {held}"
        )
        first = names.index(again) if again else 0
        artefacts: dict[str, Artefact] = {}
        hashes: dict[str, str] = {}
        for number, stage in enumerate(self.stages):
            before, after = number < first, bool(only) and number > first
            forced = not before and not after and bool(again or not resume)
            found = None if forced else self._found(stage, hashes)
            expect(
                not before or found is not None, f"stage {stage.name!r}",
                f"done, with the present options and inputs, before {again!r}", "not done, or out of date",
            )  # fmt: skip
            if found is None and not after:
                self._do(stage, artefacts, hashes, fresh=forced)
                found = self._found(stage, hashes)
            for name, (artefact, content) in (found or {}).items():
                artefacts[f"{stage.name}.{name}"], hashes[f"{stage.name}.{name}"] = artefact, content
        return artefacts

    def status(self) -> dict[str, str]:
        """ "done", "out of date", "unfinished" or "to do" of every stage."""
        states: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for stage in self.stages:
            place = self._place(stage.name)
            if not (place / DONE).exists():
                states[stage.name] = "unfinished" if place.exists() else "to do"
                continue
            found = self._found(stage, hashes)
            states[stage.name] = "out of date" if found is None else "done"
            hashes |= {f"{stage.name}.{name}": content for name, (_, content) in (found or {}).items()}
        return states

    def _place(self, name: str) -> Path:
        return self.folder / name

    def _identity(self, stage: Stage, hashes: Mapping[str, str]) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "stage": stage.name, "options": _digest(stage.options),
            "inputs": {name: hashes.get(name, "absent") for name in stage.inputs},
        }  # fmt: skip

    def _found(self, stage: Stage, hashes: Mapping[str, str]) -> dict[str, tuple[Artefact, str]] | None:
        """Artefacts and their hashes of a stage that is done as it is asked for now, or None."""
        place = self._place(stage.name)
        if not (place / DONE).exists():
            return None
        done = json.loads((place / DONE).read_text())
        if {key: done.get(key) for key in ("schema", "stage", "options", "inputs")} != self._identity(stage, hashes):
            return None
        found = {}
        for name, entry in done["outputs"].items():
            folder = place / "artefacts" / name
            whole = folder.is_dir() and digest(folder) == entry["digest"]
            expect(whole, f"artefact {stage.name}.{name}", f"the files that {place / DONE} describes",
                   f"{folder}, changed or incomplete; do the stage again with start={stage.name!r}")  # fmt: skip
            found[name] = (KINDS[entry["kind"]].load(folder), entry["digest"])
        return found

    def _do(self, stage: Stage, artefacts: Mapping[str, Artefact], hashes: Mapping[str, str], *, fresh: bool) -> None:
        place, identity = self._place(stage.name), self._identity(stage, hashes)
        begun = place / "begun.json"
        same = not fresh and begun.exists() and json.loads(begun.read_text()) == identity
        distributed.barrier()  # every process has looked before one of them changes anything
        if distributed.is_main():
            if not same:
                shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(place / "artefacts", ignore_errors=True)
            place.mkdir(parents=True, exist_ok=True)
            (place / DONE).unlink(missing_ok=True)
            write_json(begun, identity)
        distributed.barrier()
        missing = [name for name in stage.inputs if name not in artefacts]
        expect(
            not missing, f"stage {stage.name!r}: inputs", f"artefacts that were left ({', '.join(artefacts)})", missing
        )
        began = time.perf_counter()
        inputs = {name: artefacts[name] for name in stage.inputs}
        options = stage.options if isinstance(stage.options, Mapping) else {"options": stage.options}
        outputs = dict(stage.run(Context(place, inputs, options, same)))
        for name, artefact in outputs.items():
            known = type(artefact) in KINDS.values()
            expect(known, f"stage {stage.name!r}: output {name!r}", f"one of {', '.join(KINDS)}",
                   type(artefact).__name__, TypeError)  # fmt: skip
        if distributed.is_main():
            entries = {}
            for name, artefact in outputs.items():
                folder = place / "artefacts" / name
                folder.mkdir(parents=True)
                artefact.save(folder)
                entries[name] = {"kind": artefact.kind, "digest": digest(folder)}
            write_json(place / DONE, identity | {"outputs": entries, "seconds": round(time.perf_counter() - began, 3)})
        distributed.barrier()


def train_stage(make: Callable[[Context], Trainer]) -> Callable[[Context], dict[str, Artefact]]:
    """A stage's work that trains: `make(context)` builds a Trainer, whose output folder becomes `folder/run`.

    A stage that was stopped in the middle goes on from its newest checkpoint, to the bit. Leaves the artefact "run".
    """

    def run(context: Context) -> dict[str, Artefact]:
        trainer = make(context)
        trainer.config = dataclasses.replace(trainer.config, output=str(context.folder / "run"))
        return {"run": TrainedRun(trainer.fit(resume=context.resume).path)}

    return run


def _digest(options: Any) -> str:
    plain = (
        dataclasses.asdict(options) if dataclasses.is_dataclass(options) and not isinstance(options, type) else options
    )
    try:
        text = json.dumps(plain, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"stage options: expected plain values, as JSON has them, received {options!r}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:32]
