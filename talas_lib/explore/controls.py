"""Controls around the functions of `views`, for notebook 08: move one, and the figure is drawn again.

Where nobody can move anything (papermill, nbclient), a panel is the figure itself with the first values of its controls.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from talas_lib import display
from talas_lib.errors import TalasError
from talas_lib.explore import views

if TYPE_CHECKING:
    from ipywidgets import Widget

    from talas_lib.explore.views import View

WIDE = {"description_width": "initial"}


def panel(draw: Callable[..., Any], controls: Mapping[str, Widget], *, watched: bool | None = None) -> Any:
    """A box of controls above what `draw` makes of their values, drawn anew whenever one changes.

    draw: called with the controls' values by name; gives a Drawing or a DataFrame. A TalasError is shown in its place. Under the
    figure stands how long it took. watched: whether somebody can move the controls; None to find out.
    """
    from ipywidgets import HTML, HBox, VBox

    def values() -> dict[str, Any]:
        return {name: control.value for name, control in controls.items()}

    if not (display.watched() if watched is None else watched):
        return draw(**values())
    output = HTML()

    def refresh(_: Any = None) -> None:
        began = time.perf_counter()
        try:
            found = markup(draw(**values()))
        except TalasError as error:
            found = f'<p class="talas-message">{html.escape(str(error))}</p>'
        spent = 1e3 * (time.perf_counter() - began)
        output.value = f'<div class="talas-figure">{found}</div><small style="color:#777">{spent:.0f} ms</small>'

    for control in controls.values():
        control.observe(refresh, "value")
    refresh()
    return VBox([HBox(list(controls.values())), output])


def markup(found: Any) -> str:
    """A Drawing or a table as HTML; texts are escaped."""
    if isinstance(found, pd.DataFrame):
        with pd.option_context("display.max_colwidth", None):
            return found.to_html(border=0, justify="left")
    return str(found.markup)


def neighbours(view: View, query: str | None = None, *, watched: bool | None = None) -> Any:
    """A field for a sentence, and its neighbours under the three models. query: the first one, None for one of the view."""
    from ipywidgets import IntSlider, Text

    controls = {
        "query": Text(query or view.texts[0], description="sentence", continuous_update=False, layout={"width": "60%"}),
        "count": IntSlider(8, 3, min(25, len(view.texts) - 1), description="neighbours", continuous_update=False),
    }
    return panel(lambda query, count: views.neighbours(view, query, count), controls, watched=watched)


def relations(view: View, *, watched: bool | None = None) -> Any:
    """Relation matrices of a batch that a slider chooses."""
    from ipywidgets import Checkbox, IntSlider

    most = min(24, len(view.texts))
    controls = {
        "batch": IntSlider(0, 0, 50, description="batch", continuous_update=False),
        "size": IntSlider(min(12, most), 4, most, description="sentences", continuous_update=False),
        "centred": Checkbox(False, description="less their mean"),
    }
    return panel(lambda **chosen: views.relations(view, **chosen), controls, watched=watched)


def corpus_map(view: View, *, watched: bool | None = None) -> Any:
    """The map of the corpus by a model; the sentence under the pointer is shown."""
    from ipywidgets import Dropdown, Text

    controls = {
        "model": _choice(Dropdown, views.TRAINED, list(view.vectors), "model"),
        "how": _choice(Dropdown, views.LAYOUTS[0], views.LAYOUTS, "map"),
        "query": Text("", description="ring those near", continuous_update=False, style=WIDE, layout={"width": "40%"}),
    }
    return panel(lambda **chosen: views.corpus_map(view, **chosen), controls, watched=watched)


def effect_of_rho(view: View, *, watched: bool | None = None) -> Any:
    """A slider over the radius of the perturbation, from the run's own; SAM or ASAM."""
    from ipywidgets import Dropdown, SelectionSlider

    own = view.run.params.optimizer_spec
    kind = "sam" if own.kind in ("sam", "disam") else "asam"
    rhos = views.radii(view)
    options = [(f"{rho:g}", rho) for rho in rhos]
    start = own.rho if own.rho is not None else 0.5
    controls = {
        "rho": SelectionSlider(options=options, value=start, description="rho"),
        "kind": _choice(Dropdown, kind, ("asam", "sam"), "perturbation"),
    }
    return panel(lambda **chosen: views.effect_of_rho(view, **chosen), controls, watched=watched)


def gains(view: View, *, watched: bool | None = None) -> Any:
    """Gains by task, for each suite the run was scored on; a sentence instead where it was scored on none."""
    from IPython.display import Markdown
    from ipywidgets import Dropdown

    suites = list(view.run.evaluations())
    if not suites:
        return Markdown(f"{view.run.id} has not been scored yet: [04_evaluate](04_evaluate.ipynb) does that.")
    bases = list(views.bases())
    controls = {
        "suite": _choice(Dropdown, suites[-1], suites, "suite"),
        "base": _choice(Dropdown, bases[0], bases, "against"),
    }
    return panel(lambda **chosen: views.gains(view.run, **chosen), controls, watched=watched)


def _choice(kind: Any, value: str, options: Sequence[str], description: str) -> Any:
    return kind(value=value, options=list(options), description=description, style=WIDE)
