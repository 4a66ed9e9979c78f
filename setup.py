"""What pyproject.toml cannot say: recipes lie beside the package in a checkout, and inside it in a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithRecipes(build_py):
    """Copies the package, and the recipes into it."""

    def run(self) -> None:
        """Build as ever; an editable installation finds the recipes in the checkout."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "potstill" / "recipes"
            self.mkpath(str(folder))
            for path in sorted(Path("recipes").glob("*.toml")):
                self.copy_file(str(path), str(folder / path.name))


setup(cmdclass={"build_py": WithRecipes})
