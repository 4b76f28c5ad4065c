"""The examples: short, from the public API alone, and they run."""

import ast
import importlib.util
import pathlib

import jax
import pytest

import ms_ranas_jax

_PATHS = sorted(
  (pathlib.Path(__file__).resolve().parent.parent / 'examples').glob('*.py')
)
_ALIAS = 'mr'


def _import(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_there_are_examples():
  assert {path.stem for path in _PATHS} == {
    'fine_tune_a_model',
    'mixed_cell_in_your_model',
    'params_for_a_genotype',
  }


@pytest.mark.parametrize('path', _PATHS, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_its_command(path):
  source = path.read_text(encoding='utf-8')
  assert len(source.splitlines()) < 80
  header = ast.get_docstring(ast.parse(source))
  assert f'python examples/{path.name}' in header


@pytest.mark.parametrize('path', _PATHS, ids=lambda path: path.stem)
def test_an_example_uses_the_public_api_alone(path):
  tree = ast.parse(path.read_text(encoding='utf-8'))
  used = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      assert not (node.module or '').startswith('ms_ranas_jax')
    elif isinstance(node, ast.Import):
      for name in node.names:
        if name.name.startswith('ms_ranas_jax'):
          assert (name.name, name.asname) == ('ms_ranas_jax', _ALIAS)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if node.value.id == _ALIAS:
        used.add(node.attr)
  assert used and used <= set(ms_ranas_jax.__all__)


def test_a_mixed_cell_is_searched_in_a_model_of_ones_own(repo_root, capsys):
  module = _import(repo_root / 'examples/mixed_cell_in_your_model.py')
  module.NODES = 1  # compiles within seconds
  found = module.main(steps=2)
  assert isinstance(found, ms_ranas_jax.Genotype)
  assert found.nodes == 1
  assert set(found.operations()) <= set(module.NAMES) - {'none'}
  text = capsys.readouterr().out
  assert float(text.removeprefix('validation loss ')) > 0


def test_a_finished_network_is_fine_tuned_with_a_new_head(
  repo_root, tmp_path, capsys
):
  """Of random params the features still tell even digits from odd."""
  module = _import(repo_root / 'examples/fine_tune_a_model.py')
  edges = (('skip_connect', 0), ('sep_conv_3x3', 1))
  network = ms_ranas_jax.derived_network(
    ms_ranas_jax.NetworkSpec(
      channels=8, layers=3, nodes=1, image_shape=(8, 8, 1)
    ),
    ms_ranas_jax.Genotype(edges, (2,), edges, (2,)),
  )
  digits = ms_ranas_jax.load_dataset('digits')
  variables = ms_ranas_jax.init_variables(network, jax.random.key(1))
  ms_ranas_jax.build_model(network, variables, digits.mean, digits.std).save(
    tmp_path / 'model'
  )
  with jax.numpy_rank_promotion('allow'):  # as in a program of one's own
    tuned = module.main(
      str(tmp_path / 'model'), steps=120, save_to=str(tmp_path / 'tuned')
    )
  text = capsys.readouterr().out
  assert 'exit 0: ' in text and 'it is a ' in text
  right = tuned.predict(digits.test_images).labels == digits.test_labels % 2
  assert right.mean() > 0.75
  loaded = ms_ranas_jax.load_model(tmp_path / 'tuned')
  assert loaded.class_names == ('even', 'odd')
  assert set(loaded.predict(digits.test_images[:9]).names) == {'even', 'odd'}


def test_made_params_are_a_better_start_than_random_ones(repo_root):
  module = _import(repo_root / 'examples/params_for_a_genotype.py')
  with jax.numpy_rank_promotion('allow'):  # as in a program of one's own
    found = module.main(epochs=12)
  assert found['made'] < 0.8 * found['random']
