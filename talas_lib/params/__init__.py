"""Parameters: notebook values, the files of `params/`, and the frozen object a notebook works with.
Torch-free.

p = params.from_notebook("03_train", globals(), In) # in a notebook's first working cell p =
params.resolve("03_train", {"teacher": "tiny"}) # anywhere else
"""

from talas_lib.params.fingerprints import corpus_identity, file_sha256, folder_sha256, model_identity
from talas_lib.params.grid import Table, cell_suites, expand_grid, expand_tables, select_tables
from talas_lib.params.loading import (
    available,
    load_corpus_spec,
    load_method,
    load_optimizer,
    load_preset,
    load_student,
    load_tasks,
    load_teacher,
)
from talas_lib.params.notebooks import notebook_names, notebook_parameters, notebook_schema, parameters_cell
from talas_lib.params.recipe import RECIPE_VERSION, config_hash
from talas_lib.params.resolved import ResolvedParams
from talas_lib.params.resolving import from_dict, from_notebook, resolve
from talas_lib.params.sources import ResolvedSource, check_available, corpus_path, resolve_source
from talas_lib.params.specs import (
    CorpusSpec,
    OptimizerSpec,
    StudentSpec,
    TaskSpec,
    TaskSuiteSpec,
    TeacherSpec,
)
from talas_lib.params.vocabulary import VOCABULARY, Parameter, yaml_text

__all__ = [
    "RECIPE_VERSION",
    "VOCABULARY",
    "CorpusSpec",
    "OptimizerSpec",
    "Parameter",
    "ResolvedParams",
    "ResolvedSource",
    "StudentSpec",
    "Table",
    "TaskSpec",
    "TaskSuiteSpec",
    "TeacherSpec",
    "available",
    "cell_suites",
    "check_available",
    "config_hash",
    "corpus_identity",
    "corpus_path",
    "expand_grid",
    "expand_tables",
    "file_sha256",
    "folder_sha256",
    "from_dict",
    "from_notebook",
    "load_corpus_spec",
    "load_method",
    "load_optimizer",
    "load_preset",
    "load_student",
    "load_tasks",
    "load_teacher",
    "model_identity",
    "notebook_names",
    "notebook_parameters",
    "notebook_schema",
    "parameters_cell",
    "resolve",
    "resolve_source",
    "select_tables",
    "yaml_text",
]
