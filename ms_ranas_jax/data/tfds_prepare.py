"""Prepares CIFAR for tensorflow-datasets, with no TensorFlow.

The stock builders of tensorflow-datasets need TensorFlow to prepare CIFAR. The
one here reads the published archive with tarfile and encodes the images with
pillow. What it writes is what the stock builder would have written, so any
other program on tensorflow-datasets can use it.
"""

from __future__ import annotations

from collections.abc import Iterator
import io
import os
import pathlib
import tarfile
from typing import Any
import zlib

import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.data import tfds_source

_CONNECT_TIMEOUT_S = 5.0


def prepare(
  name: str,
  data_dir: pathlib.Path,
  archive: pathlib.Path | None = None,
) -> pathlib.Path:
  """Downloads a dataset, unless given its archive, and prepares it.

  Args:
    name: 'cifar10' or 'cifar100'.
    data_dir: the data directory of tensorflow-datasets; made if absent.
    archive: a copy of the published binary archive, taken as it is. None
      downloads the archive and checks it against its published sum.

  Returns:
    The folder of the prepared version; one that was there is left as it is.

  Raises:
    UsageError: the name is not known, the publisher cannot be reached, the
      archive is not the published binary version, or `data_dir` cannot be
      written.
  """
  if name not in cifar_files.NUM_CLASSES:
    raise errors.UsageError(
      f'dataset {name!r} cannot be prepared; use one of '
      f'{", ".join(cifar_files.NUM_CLASSES)}.'
    )
  folder = tfds_source.find_prepared(name, data_dir)
  if folder is not None:
    tfds_source.check_format(folder, tfds_source.prepare_words(name))
    return folder
  if archive is not None and not archive.is_file():
    raise errors.UsageError(
      f'{archive} is not a file; give the published .tar.gz as --archive.'
    )
  tfds = tfds_source.import_tfds()
  try:
    builder_class = _builder_class(tfds, name, archive)
    builder = builder_class(
      data_dir=str(data_dir), file_format=tfds_source.FORMAT
    )
    if archive is None:
      _check_reachable(builder.cifar_info.url, name)
    try:
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
      )
    except tfds.download.DownloadError as error:
      raise errors.UsageError(
        f'{builder.cifar_info.url} could not be downloaded: {error}; run the '
        f'command again later, or give a copy of the archive as --archive.'
      ) from error
    except tfds.download.download_manager.NonMatchingChecksumError as error:
      raise errors.UsageError(
        f'what came from {builder.cifar_info.url} is not the published '
        f'archive: its checksum differs; run the command again later, or give '
        f'a copy of the archive as --archive.'
      ) from error
  except OSError as error:  # Also of the network, half way.
    raise errors.UsageError(
      f'{name} could not be prepared in {data_dir}: {error}; check that the '
      f'folder can be written and the network is there, or name another '
      f'folder with --dir.'
    ) from error
  folder = tfds_source.find_prepared(name, data_dir)
  if folder is None:
    raise errors.UsageError(
      f'{builder.data_dir} is there but not a whole dataset; remove it and '
      f'run {tfds_source.prepare_command(name, data_dir)} again.'
    )
  return folder


def _check_reachable(url: str, name: str) -> None:
  """Raises UsageError within seconds where the publisher is out of reach."""
  import requests  # A requirement of tensorflow-datasets.

  try:
    response = requests.head(
      url, timeout=_CONNECT_TIMEOUT_S, allow_redirects=True
    )
    response.raise_for_status()
  except requests.RequestException as error:
    raise errors.UsageError(
      f'{url} cannot be reached ({type(error).__name__}); download it where '
      f'there is a network and run {tfds_source.prepare_command(name)} '
      f'--archive={url.rsplit("/", 1)[-1]}, or unpack a copy and set '
      f'dataset.dir to its folder.'
    ) from error


def _builder_class(
  tfds: Any, name: str, archive: pathlib.Path | None
) -> type[Any]:
  """Returns a builder of the stock dataset that needs no TensorFlow.

  Args:
    tfds: the tensorflow_datasets module.
    name: 'cifar10' or 'cifar100'.
    archive: the archive to read; None downloads it.
  """
  from tensorflow_datasets.image_classification import cifar

  stock: Any = {'cifar10': cifar.Cifar10, 'cifar100': cifar.Cifar100}[name]
  dataset_name = name

  class Builder(stock, skip_registration=True):
    """The stock builder with the parts replaced that call TensorFlow."""

    name = dataset_name
    # The stock class finds the published sums next to its own source.
    url_infos = stock.url_infos

    @property
    def cifar_info(self) -> Any:
      """The published archive: its address, its files, its label names."""
      return self._cifar_info

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      path = archive or dl_manager.download(self.cifar_info.url)
      content = _read_archive(path, self.cifar_info, name)
      for key, file in zip(
        self.cifar_info.label_keys, self.cifar_info.label_files
      ):
        text = content[file].decode('utf-8')
        self.info.features[key].names = text.split()
      num_classes = cifar_files.NUM_CLASSES[name]
      return {
        split: _examples(prefix, files, content, self.cifar_info, num_classes)
        for split, prefix, files in (
          (tfds.Split.TRAIN, 'train_', self.cifar_info.train_files),
          (tfds.Split.TEST, 'test_', self.cifar_info.test_files),
        )
      }

  return Builder


def _examples(
  prefix: str,
  files: list[str],
  content: dict[str, bytes],
  info: Any,
  num_classes: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields key and example as the stock builder does, images as PNG bytes."""
  from PIL import Image  # With tensorflow-datasets, only here.

  index = 0
  for file in files:
    images, labels = cifar_files.parse_records(
      content[file], len(info.label_keys), num_classes, file
    )
    for image, values in zip(images, labels):
      png = io.BytesIO()
      Image.fromarray(np.ascontiguousarray(image)).save(png, format='PNG')
      yield (
        index,
        {
          'id': f'{prefix}{index:05d}',
          'image': png.getvalue(),
          **dict(zip(info.label_keys, map(int, values))),
        },
      )
      index += 1


def _content(archive: tarfile.TarFile, name: str) -> bytes:
  file = archive.extractfile(name)
  if file is None:
    raise KeyError(f'{name} is no file')
  return file.read()


def _read_archive(
  path: str | os.PathLike[str], info: Any, name: str
) -> dict[str, bytes]:
  """Returns the content of each file that the builder needs, by its name."""
  names = (*info.train_files, *info.test_files, *info.label_files)
  try:
    with tarfile.open(path, 'r:*') as archive:
      # Named members, read in place: nothing is unpacked to disk.
      return {file: _content(archive, info.prefix + file) for file in names}
  except KeyError as error:
    raise errors.UsageError(
      f'{path}: {error.args[0]}; it is not the binary version of {name}: '
      f'give a copy of {info.url}.'
    ) from error
  except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
    raise errors.UsageError(
      f'{path} is not a whole tar archive; download {info.url} anew.'
    ) from error
