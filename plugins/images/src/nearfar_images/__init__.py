"""nearfar for images."""

from __future__ import annotations

from nearfar.plugin import Plugin

PLUGIN = Plugin(
    name="images",
    summary="pretrain, evaluate and export image encoders",
    systems="nearfar_images.systems",
    commands={
        "demo": "nearfar_images.commands:demo",
        "train": "nearfar_images.commands:train",
        "compare": "nearfar_images.compare.command:main",
        "evaluate": "nearfar_images.evaluate_command:evaluate",
        "embed": "nearfar_images.commands:embed",
        "neighbours": "nearfar_images.commands:neighbours",
        "index": "nearfar_images.index_commands:index",
        "search": "nearfar_images.index_commands:search",
        "duplicates": "nearfar_images.index_commands:duplicates",
        "vit": "nearfar_images.vit_command:vit",
        "export": "nearfar_images.commands:export",
        "upscale": "nearfar_images.upscale_command:upscale",
        "translate": "nearfar_images.translate_command:translate",
    },
    help={
        "demo": "SimCLR on handwritten digits in about a minute, without any download",
        "train": "train a system on your images: train RECIPE --data.root FOLDER",
        "compare": "several systems side by side on your images, within a budget",
        "evaluate": "kNN, probes, retrieval, clustering, geometry, robustness and transfer of a run's features",
        "embed": "write the features of a folder of images",
        "neighbours": "nearest images of a query",
        "index": "make an index of a folder of images, or bring it up to date",
        "search": "images of an index most similar to query images",
        "duplicates": "near-duplicates in an index",
        "vit": "attention, similarity and scores of a vision transformer, block by block",
        "export": "write the encoder as safetensors or ONNX",
        "translate": "translate a folder of pictures by a run of cut: translate RUN FOLDER --out FOLDER",
        "upscale": "enlarge a folder of pictures by a run of pcl_sr: upscale RUN FOLDER --out FOLDER",
    },
    zoo={"digits": "nearfar_images.zoo:DIGITS", "digits_supervised": "nearfar_images.zoo:DIGITS_SUPERVISED"},
)
