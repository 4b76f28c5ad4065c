"""Runs the network beside this file: onnxruntime, numpy and pillow do."""

import argparse
from collections.abc import Iterator
import hashlib
import json
import pathlib

import numpy as np
import onnxruntime
from PIL import Image
from PIL import ImageOps

HERE = pathlib.Path(__file__).parent


def read(path: str, shape: list[int]) -> np.ndarray:
  """Reads a picture upright, in the network's colours and size, uint8."""
  picture = ImageOps.exif_transpose(Image.open(path))
  if picture.mode[0] in 'IF':  # 16 bits a pixel, or of no known range
    v = np.asarray(picture)
    assert v.dtype != 'f4' and 0 <= v.min() and 255 < v.max() < 65536, 'range'
    picture = Image.fromarray((v // 257).astype(np.uint8))
  if picture.has_transparency_data:
    white = Image.new('RGBA', picture.size, 'white')
    picture = Image.alpha_composite(white, picture.convert('RGBA'))
  picture = picture.convert('L' if shape[2] == 1 else 'RGB')
  picture = ImageOps.fit(picture, (shape[1], shape[0]))  # bicubic
  return np.asarray(picture, np.uint8).reshape(shape)


def run(sessions, images, exits, thresholds) -> Iterator[tuple]:
  """Yields (logits, probabilities) of each exit, until all images are sure."""
  have = {'images': images}
  for session, exit_, least in zip(sessions, exits, thresholds):
    names = [entry.name for entry in session.get_outputs()]
    fed = {entry.name: have[entry.name] for entry in session.get_inputs()}
    have |= dict(zip(names, session.run(names, fed), strict=True))
    scaled = have['logits'].astype(np.float64) / exit_['temperature']
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    yield have['logits'], shares / shares.sum(axis=1, keepdims=True)
    if (1 / shares.sum(axis=1)).min() >= least:
      return


def main() -> None:
  """Checks the files and their answers, or classifies pictures."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument('pictures', nargs='*')
  parser.add_argument('--q', type=float, help='stop by its stored thresholds')
  parser.add_argument('--confidence', type=float, default=2.0)
  parser.add_argument('--exit', type=int, default=99, help='the last to take')
  parser.add_argument('--int8', action='store_true', help='in 8 bits')
  args = parser.parse_args()
  about = json.loads((HERE / 'manifest.json').read_text(encoding='utf-8'))
  for name, entry in about['files'].items():
    digest = hashlib.sha256((HERE / name).read_bytes()).hexdigest()
    assert digest == entry['sha256'], f'{name} was changed; copy it again'
  steps = about['steps']['int8' if args.int8 else 'float32'][: args.exit + 1]
  options = onnxruntime.SessionOptions()  # threads make way for the next step's
  options.add_session_config_entry('session.force_spinning_stop', '1')
  found = [onnxruntime.InferenceSession(HERE / s, options) for s in steps]
  solved = {entry['q']: entry['thresholds'] for entry in about['thresholds']}
  sure = [args.confidence] * 99 if args.q is None else solved[args.q]
  if not args.pictures:
    vectors = np.load(HERE / 'test_vectors.npz')
    answers = run(found, vectors['images'], about['exits'], [2.0] * 99)
    classes = np.stack([logits.argmax(axis=1) for logits, _ in answers])
    same = classes == vectors['logits'].argmax(axis=2)[: len(classes)]
    print('same classes as test_vectors.npz, by exit:', same.mean(axis=1))
    assert same.all() or args.int8, 'not the answers that were exported'
  for path in args.pictures:
    image = read(path, about['image_shape'])[None]
    *_, (_, shares) = answers = list(run(found, image, about['exits'], sure))
    name = about['class_names'][shares.argmax()]
    print(f'{path}: {name}, {shares.max():.1%}, exit {len(answers) - 1}')


if __name__ == '__main__':
  main()
