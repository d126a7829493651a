"""One teacher or several: what may be given together, the specs behind it, and whether the method can use so many."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from talas_lib import methods
from talas_lib.errors import TalasError, listed
from talas_lib.params import loading
from talas_lib.params.specs import TeacherSpec


def teacher_specs(given: Mapping[str, Any], explicit: Collection[str]) -> tuple[TeacherSpec, ...]:
    """The teachers of given values, in order: those of `teachers`, or the one of `teacher`.

    explicit: names the user gave, as against defaults. Raises TalasError for both at once and for a teacher named twice.
    """
    several = given.get("teachers")
    if not several:
        return (_reading(loading.load_teacher(given["teacher"], given.get("teacher_source")), given),)
    if "teacher" in explicit:
        raise TalasError(
            f"teacher is {given['teacher']!r} and teachers is {several!r}: give one of the two. Accepted: `-p teacher NAME`"
            " for one teacher, `-y 'teachers: [NAME, NAME]'` for several"
        )
    if given.get("teacher_source") is not None:
        raise TalasError(
            f"teacher_source is {given['teacher_source']!r}, which belongs to `teacher`, and teachers is {several!r}. A local"
            " folder among several is written into the list itself: `-y 'teachers: [minilm-l6, ./my_teacher]'`"
        )
    specs = tuple(_reading(loading.load_teacher(name), given) for name in several)
    for number, spec in enumerate(specs):
        if spec in specs[:number]:
            raise TalasError(f"teachers is {several!r}: {several[number]!r} is in it twice; name each teacher once")
    return specs


def _reading(spec: TeacherSpec, given: Mapping[str, Any]) -> TeacherSpec:
    length = given.get("max_length")
    return spec if length is None else spec.model_copy(update={"max_length": length})


def check_count(method: str, config: BaseModel, teachers: Collection[TeacherSpec]) -> None:
    """Raises TalasError when the method wants more teachers than these, or fewer.

    A method without teacher takes any: they are then only scored beside the student.
    """
    low, high = methods.needs(method, config).teachers
    if high == 0 or (low <= len(teachers) and (high is None or len(teachers) <= high)):
        return
    wanted = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
    names = listed(spec.name for spec in teachers)
    if len(teachers) < low:
        way_out = "name them all: `-y 'teachers: [minilm-l6, mpnet-base]'`"
    else:
        way_out = f"leave out the others, or take a method for {len(teachers)}: {listed(_methods_for(len(teachers)))}"
    teacher = "teacher" if wanted == "1" else "teachers"
    raise TalasError(f"method {method!r} learns from {wanted} {teacher}, here are {len(teachers)} ({names}); {way_out}")


def _methods_for(teachers: int) -> list[str]:
    """Methods whose files ask for so many teachers."""
    found = []
    for name in methods.available():
        low, high = methods.needs(name, loading.load_method(name)).teachers
        if low <= teachers and (high is None or teachers <= high):
            found.append(name)
    return found
