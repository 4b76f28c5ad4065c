"""Bad input at the command line: one sentence, status 2, no traceback.

A start of Python takes seconds, so one process imports the program and forks
for every command line; a few are also run as a user runs them.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from ms_ranas_jax import default_config

_SECONDS = 30
_FORKING = hasattr(os, 'fork')
# Reads [[name, [argument, ...]], ...] and the folder of the outputs.
_SERVER = """
import json, os, sys, time, traceback
from ms_ranas_jax import command, main, stages  # and all that they import
from ms_ranas_jax.data import datasets
from ms_ranas_jax.studies import runner
datasets.load_dataset('digits')  # read once, and by most of them
folder = sys.argv[1]
seconds = {}
for name, arguments in json.load(sys.stdin):
  began = time.monotonic()
  child = os.fork()
  if not child:
    for number, stream in (1, 'out'), (2, 'err'):
      file = os.open(
        f'{folder}/{name}.{stream}', os.O_WRONLY | os.O_CREAT, 0o600
      )
      os.dup2(file, number)
    sys.argv = ['main', *arguments]
    code = 0
    try:
      main.run()
    except SystemExit as end:
      code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
      traceback.print_exc()
      code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  status = os.waitpid(child, 0)[1]
  seconds[name] = (
    os.waitstatus_to_exitcode(status), time.monotonic() - began
  )
json.dump(seconds, sys.stdout)
"""

_GENOTYPE = {
  'normal': [['skip_connect', 0], ['sep_conv_3x3', 1]] * 2,
  'normal_concat': [2, 3],
  'reduction': [['max_pool_3x3', 0], ['max_pool_3x3', 1]] * 2,
  'reduction_concat': [2, 3],
}
_ONE_NODE = {
  name: value[: len(value) // 2] for name, value in _GENOTYPE.items()
}
_BAD_CONFIGS = {
  'no_function': 'x = 1\n',
  'not_python': 'def get_config(: pass\n',
  'no_module': 'import no_such_module\n',
  'no_name': 'def get_config():\n  return no_such_name\n',
  'no_config': 'def get_config():\n  return {"seed": 1}\n',
}
_RAISES = 'def get_config():\n  raise ValueError("of two lines")\n'
_DIGITS = ('--config={configs}/digits.py', '--workdir={fresh}')
_CIFAR10 = ('--config={configs}/cifar10.py', '--workdir={fresh}')


def _digits(*arguments):
  return (*_DIGITS, *(f'--config.{argument}' for argument in arguments))


def _cifar10(*arguments):
  return (*_CIFAR10, *(f'--config.{argument}' for argument in arguments))


# name: (arguments, texts that the sentence must have). In both, {name} is a
# path that `_places` makes.
_CASES = {
  'unknown_field': (
    _digits('foo=1'),
    ['config.foo is not a field', 'sections.py'],
  ),
  'unknown_field_of_a_section': (
    _digits('search.epoch=1'),
    ['config.search.epoch ', 'use config.search.epochs', 'sections.py'],
  ),
  'unknown_field_after_no': (
    (*_DIGITS, '--noconfig.dataset.flop'),
    ['config.dataset.flop ', 'use config.dataset.flip'],
  ),
  'unknown_field_in_a_flag_file': (
    (*_DIGITS, '--flagfile={flagfile}'),
    ['--config', 'epochs'],
  ),
  'a_section_as_a_field': (
    _digits('search=1'),
    ['config.search is not a field', 'sections.py'],
  ),
  'a_text_for_a_number': (
    _digits('seed=abc'),
    ['--config.seed=abc', 'sections.py'],
  ),
  'a_fraction_for_an_integer': (
    _digits('search.epochs=1.5'),
    ['--config.search.epochs=1.5', 'sections.py'],
  ),
  'a_number_for_a_flag': (
    _digits('dataset.flip=3'),
    ['--config.dataset.flip=3', 'sections.py'],
  ),
  'a_field_without_a_value': (
    _digits('seed'),
    ['--config.seed', 'sections.py'],
  ),
  'impossible_number': (
    _digits('seed=-1'),
    ['config.seed = -1: give a whole number of at least 0'],
  ),
  'not_a_number': (
    _digits('search.learning_rate=nan'),
    ['config.search.learning_rate = nan: give a number above 0'],
  ),
  'unknown_word': (
    _digits('lowering=fast'),
    ["config.lowering = 'fast': give one of 'auto', 'taps', 'fused', "],
  ),
  'unknown_stage': (
    _digits("stages=('search','deploy')"),
    ["config.stages = ('search', 'deploy'): give a tuple of any of describe"],
  ),
  # What is refused shows how a tuple was read.
  'stages_without_quotes': (
    _digits('stages=search,deploy'),
    ["config.stages = ('search', 'deploy'): give"],
  ),
  'stages_given_twice': (
    _digits('stages=search', 'stages=deploy'),
    ["config.stages = ('deploy',): give"],
  ),
  'no_primitives': (
    _digits('search.primitives='),
    ['config.search.primitives = (): give'],
  ),
  'numbers_without_brackets': (
    _digits('evaluate.budget_range=1e6,0'),
    ['config.evaluate.budget_range = (1000000.0, 0): give'],
  ),
  'one_number_alone': (
    _digits('study.seeds=-1'),
    ['config.study.seeds = (-1,): give'],
  ),
  'one_exit_alone': (
    _digits('train.network.exits=9'),
    ['train.network.exits names layer 9'],
  ),
  'a_config_by_its_name': (
    ('--config=digits', '--workdir={fresh}', '--config.seed=-1'),
    ['config.seed = -1: give'],
  ),
  'a_config_by_its_name_with_an_argument': (
    ('--config=study:figure7', '--workdir={fresh}'),
    ["config.study.figure = 'figure7': give one of"],
  ),
  'impossible_grid_in_search': (
    _digits('search.network.scales=5'),
    ['search.network.scales = 5', '8x8 image', 'give at most 4 scales'],
  ),
  'impossible_grid_in_training': (
    _digits('train.network.scales=5'),
    ['train.network.scales = 5', 'give at most 4 scales'],
  ),
  'an_exit_that_is_not_there': (
    _digits('train.network.exits=(1,9)'),
    ['train.network.exits', '9'],
  ),
  'unknown_exits': (
    _digits('search.network.exits=first'),
    ['search.network.exits', "'first'"],
  ),
  'networks_that_do_not_fit': (
    _digits('search.network.nodes=3'),
    ['config.train.network.nodes = 2', 'search.network.nodes = 3', 'equal'],
  ),
  'genotype_not_json': (
    _digits('train.genotype={broken}'),
    ['{broken}', 'not valid JSON'],
  ),
  'genotype_of_other_nodes': (
    _digits('train.genotype={one_node}'),
    ['train.network.nodes = 2', 'set train.network.nodes = 1'],
  ),
  'genotype_of_an_unknown_operation': (
    _digits('train.genotype={unknown_operation}'),
    ['{unknown_operation}', '"warp"', 'correct the name'],
  ),
  'genotype_with_none': (
    _digits('train.genotype={none_operation}'),
    ['{none_operation}', '"none"'],
  ),
  'genotype_that_reads_ahead': (
    _digits('train.genotype={ahead}'),
    ['{ahead}', '"normal", entry 1', 'states 0 to 1 only'],
  ),
  'broken_genotype_to_describe': (
    _digits('train.genotype={unknown_operation}', "stages=('describe',)"),
    ['{unknown_operation}', '"warp"'],
  ),
  'genotype_that_is_nowhere': (
    _digits('train.genotype=DARTS_V3'),
    ['"DARTS_V3"', 'DARTS_V2', 'nor a file', 'correct the name or the path'],
  ),
  'unknown_dataset': (
    _digits('dataset.name=mnist'),
    ["dataset.name = 'mnist'", 'digits'],
  ),
  'dataset_folder_missing': (
    _cifar10('dataset.dir={missing}'),
    ['dataset.dir: {missing} does not exist', 'prepare_data'],
  ),
  'dataset_folder_empty': (
    _cifar10('dataset.dir={empty}'),
    ['dataset.dir: {empty} has neither', 'prepare_data'],
  ),
  'dataset_of_another_name': (
    _cifar10('dataset.dir={cifar100}'),
    ['holds cifar100, not cifar10', "set dataset.name to 'cifar100'"],
  ),
  'dataset_not_prepared': (
    _CIFAR10,
    ['cifar10 is not prepared in {missing}', 'prepare_data', 'dataset.dir'],
  ),
  'no_npz_file': (
    _digits('dataset.name=npz', 'dataset.dir={missing}'),
    ['dataset.dir', '{missing}'],
  ),
  'work_directory_of_another_config': (
    ('--config={configs}/default.py', '--workdir={other}', '--config.seed=7'),
    ['{other}/config.json is of another config', 'seed was 3, now 7'],
  ),
  'work_directory_of_a_quite_different_config': (
    ('--config={configs}/cifar10.py', '--workdir={other}'),
    ['{other}/config.json is of another config', ' more; name another'],
  ),
  'work_directory_with_a_broken_config': (
    ('--config={configs}/digits.py', '--workdir={spoilt}'),
    ['{spoilt}/config.json is not valid JSON', 'mend the file'],
  ),
  'work_directory_is_a_file': (
    ('--config={configs}/digits.py', '--workdir={broken}'),
    ['--workdir={broken} is a file; name a directory'],
  ),
  'work_directory_in_a_file': (
    ('--config={configs}/digits.py', '--workdir={broken}/run'),
    ['{broken}/run', 'check the path'],
  ),
  'train_without_search': (
    _digits("stages=('train',)"),
    ['no search/genotype.json in {fresh}', "'search'", 'train.genotype'],
  ),
  'evaluate_without_train': (
    _digits("stages=('evaluate',)", 'train.genotype={good}'),
    ['{fresh}/model', "run the 'train' stage"],
  ),
  'too_many_devices': (
    _digits('num_devices=64'),
    ['num_devices = 64', 'set num_devices to at most'],
  ),
  'search_batch_too_large': (
    _digits('search.batch_size=5000'),
    ['search.batch_size = 5000', '718 images', 'smaller batch'],
  ),
  'train_batch_too_large': (
    _digits('train.batch_size=5000'),
    ['train.batch_size = 5000', '1237 images', 'smaller batch'],
  ),
  'holdout_too_large': (
    _digits('dataset.holdout=1437'),
    ['dataset.holdout = 1437', 'hold out fewer'],
  ),
  'exit_weights_of_the_search': (
    _digits('search.exit_weights=(1,2,3)'),
    ['search.exit_weights has 3 entries for 2 exits'],
  ),
  'exit_weights_of_the_training': (
    _digits('train.exit_weights=(1,2)'),
    ['train.exit_weights has 2 entries for 3 exits'],
  ),
  'no_config': ((), ['give a config: --config=digits']),
  'no_config_but_a_work_directory': (
    ('--workdir={fresh}',),
    ['give a config: --config=digits'],
  ),
  'no_config_file': (
    ('--config={missing}.py', '--workdir={fresh}'),
    [
      '--config',
      '{missing}.py',
      'the name of one',
      'digits, fine_tune, flowers, imagenet, msdnet_cifar10',
    ],
  ),
  'no_config_file_but_a_field': (
    ('--config={missing}.py', '--config.seed=1'),
    [
      '--config',
      '{missing}.py',
      'the name of one',
      'digits, fine_tune, flowers, imagenet, msdnet_cifar10',
    ],
  ),
  'a_config_that_is_a_folder': (
    ('--config={empty}',),
    [
      '--config',
      '{empty}',
      'the name of one',
      'digits, fine_tune, flowers, imagenet, msdnet_cifar10',
    ],
  ),
  'a_config_without_a_name': (
    ('--config=',),
    [
      '--config',
      'the name of one',
      'digits, fine_tune, flowers, imagenet, msdnet_cifar10',
    ],
  ),
  'a_config_with_an_argument': (
    ('--config={configs}/digits.py:large',),
    ['--config={configs}/digits.py:large', 'get_config'],
  ),
  'a_study_of_no_figure': (
    ('--config={configs}/study.py:figure7', '--workdir={fresh}'),
    [
      "config.study.figure = 'figure7': give one of",
      "'figure4', 'figure5', 'figure6', 'figure9', 'figure10'",
    ],
  ),
  'a_study_without_a_figure': (
    ('--config={configs}/study.py', '--workdir={fresh}'),
    ["config.study.figure = 'FIGURE': give one of", "'figure4'"],
  ),
  'a_study_of_no_size': (
    ('--config={configs}/study.py:figure4.tpu', '--workdir={fresh}'),
    ["config.study.size = 'tpu': give one of 'paper', 'cpu'"],
  ),
  'a_study_that_does_not_train': (
    (
      '--config={configs}/study.py:figure4.cpu',
      '--workdir={fresh}',
      "--config.stages=('search',)",
    ),
    ['config.stages', 'a study searches, trains and evaluates', 'add evaluate'],
  ),
  'a_study_of_unequal_networks': (
    (
      '--config={configs}/study.py:figure9.cpu',
      '--workdir={fresh}',
      '--config.train.network.channels=4',
    ),
    ['MS-RANAS: search.cost.target = 743,654', 'change their sizes'],
  ),
  'fields_before_the_config': (
    ('--config.seed=1', '--config={configs}/digits.py'),
    ['--config.seed=1', 'before'],
  ),
  'unknown_flag': (
    (*_DIGITS, '--workdri=x'),
    ["'workdri'", 'workdir', '--helpfull'],
  ),
  'a_word_that_is_no_flag': (
    (*_DIGITS, 'search'),
    ["unknown argument 'search'", 'start with --'],
  ),
  **{
    f'bad_config_{name}': (
      (f'--config={{{name}}}',),
      ['--config', 'get_config'],
    )
    for name in _BAD_CONFIGS
  },
  'a_config_that_raises': (
    ('--config={raises}',),
    ['--config={raises}', 'of two lines'],
  ),
}


@dataclasses.dataclass(frozen=True)
class _End:
  """How a command ended; times are in seconds."""

  code: int
  out: str
  err: str
  seconds: float


def _environment(missing):
  return os.environ | {'JAX_PLATFORMS': 'cpu', 'TFDS_DATA_DIR': missing}


def _genotype_file(path, **changes):
  path.write_text(json.dumps(_GENOTYPE | changes))
  return str(path)


@pytest.fixture(scope='module')
def places(tmp_path_factory, repo_root) -> dict[str, str]:
  """Paths by the names that the cases give them."""
  folder = tmp_path_factory.mktemp('main')
  paths = {'configs': str(repo_root / 'configs')}
  paths |= {name: str(folder / name) for name in ('missing', 'empty', 'broken')}
  pathlib.Path(paths['empty']).mkdir()
  pathlib.Path(paths['broken']).write_text('{"normal": [')
  # What is not the place itself is looked for in it.
  (folder / 'cifar100/cifar-100-python').mkdir(parents=True)
  paths['cifar100'] = str(folder / 'cifar100')
  for name, content in (_BAD_CONFIGS | {'raises': _RAISES}).items():
    path = folder / f'{name}.py'
    path.write_text(content)
    paths[name] = str(path)
  flagfile = folder / 'flags'
  flagfile.write_text('--config.search.epoch=1\n')
  paths['flagfile'] = str(flagfile)

  other = json.dumps(default_config.get_config().to_dict() | {'seed': 3})
  for name, content in ('other', other), ('spoilt', '{"seed": '):
    (folder / name).mkdir()
    (folder / name / 'config.json').write_text(content)
    paths[name] = str(folder / name)

  edges = _GENOTYPE['normal']
  one_node = folder / 'one_node.json'
  one_node.write_text(json.dumps(_ONE_NODE))
  return paths | {
    'one_node': str(one_node),
    'good': _genotype_file(folder / 'good.json'),
    'ahead': _genotype_file(
      folder / 'ahead.json', normal=[edges[0], ['skip_connect', 2], *edges[2:]]
    ),
    'unknown_operation': _genotype_file(
      folder / 'unknown.json', normal=[edges[0], ['warp', 1], *edges[2:]]
    ),
    'none_operation': _genotype_file(
      folder / 'none.json', reduction=[['none', 0], *edges[1:]]
    ),
  }


def _filled(texts, name, places):
  """Fills paths in; each case has a work directory of its own."""
  fresh = os.path.join(os.path.dirname(places['missing']), f'run_{name}')
  paths = places | {'fresh': fresh}
  return [text.format(**paths) for text in texts]


@pytest.fixture(scope='module')
def ends(places, repo_root, tmp_path_factory) -> dict[str, _End]:
  """How each of the cases ended."""
  if not _FORKING:
    pytest.skip('this system cannot fork')
  folder = tmp_path_factory.mktemp('outputs')
  commands = [
    (name, _filled(arguments, name, places))
    for name, (arguments, _) in _CASES.items()
  ]
  server = subprocess.run(
    [sys.executable, '-c', _SERVER, str(folder)],
    input=json.dumps(commands),
    capture_output=True,
    check=False,
    cwd=repo_root,
    env=_environment(places['missing']),
    text=True,
    timeout=600,
  )
  assert server.returncode == 0, server.stderr
  return {
    name: _End(
      code,
      (folder / f'{name}.out').read_text(),
      (folder / f'{name}.err').read_text(),
      seconds,
    )
    for name, (code, seconds) in json.loads(server.stdout).items()
  }


def _assert_refused(end, texts):
  print(f'{end.seconds:.1f} s, status {end.code}: {end.err}')
  assert end.code == 2
  assert end.seconds < _SECONDS
  assert 'Traceback' not in end.out + end.err
  assert end.err.startswith('ms_ranas_jax: ')
  assert end.err.endswith('\n') and end.err.count('\n') == 1
  missing = [text for text in texts if text not in end.err]
  assert not missing


@pytest.mark.parametrize('name', _CASES)
def test_bad_input_is_refused(ends, places, name):
  arguments, texts = _CASES[name]
  _assert_refused(ends[name], _filled(texts, name, places))
  # The work directory has not become one of a bad config, which would refuse
  # the command once it is mended. Only what to evaluate is wrong here:
  if name != 'evaluate_without_train':
    assert not os.path.exists(_filled(['{fresh}'], name, places)[0]), arguments


@pytest.mark.parametrize(
  'name',
  ['unknown_field_of_a_section', 'dataset_of_another_name'],
)
def test_the_command_as_a_user_runs_it(places, repo_root, name):
  arguments, texts = _CASES[name]
  began = time.monotonic()
  end = subprocess.run(
    [sys.executable, '-m', 'ms_ranas_jax.main']
    + _filled(arguments, name, places),
    capture_output=True,
    check=False,
    cwd=repo_root,
    env=_environment(places['missing']),
    text=True,
    timeout=2 * _SECONDS,
  )
  _assert_refused(
    _End(end.returncode, end.stdout, end.stderr, time.monotonic() - began),
    _filled(texts, name, places),
  )
