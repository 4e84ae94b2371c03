"""The page of a package index: README.md without what only the repository can show, its pictures and links to files."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class IndexPage(MetadataHookInterface):
    """Make the long description, by the substitutions that pyproject.toml lists."""

    def update(self, metadata: dict) -> None:
        """Put it where the build looks for it."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        for rule in self.config["substitutions"]:
            text = re.sub(rule["pattern"], rule["replacement"], text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
