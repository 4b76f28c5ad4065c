import pytest

from ms_ranas_jax.data import prepare_data
from ms_ranas_jax.data import tfds_source


def test_prepares_from_an_archive(tmp_path, cifar10_archive, capsys):
  status = prepare_data.main(
    [
      '--dataset=cifar10',
      f'--dir={tmp_path}',
      f'--archive={cifar10_archive}',
    ]
  )
  assert status == 0
  folder = tfds_source.find_prepared('cifar10', tmp_path)
  assert f'cifar10 is ready in {folder}.' in capsys.readouterr().out


def test_home_folders_are_expanded(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  status = prepare_data.main(
    ['--dataset=cifar10', '--dir=~/data', '--archive=~/absent.tar.gz']
  )
  assert status == 2
  assert f'{tmp_path}/absent.tar.gz is not a file' in capsys.readouterr().err


def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys):
  status = prepare_data.main(
    [
      '--dataset=cifar10',
      f'--dir={tmp_path}',
      f'--archive={tmp_path}/absent.tar.gz',
    ]
  )
  assert status == 2
  output = capsys.readouterr()
  assert 'absent.tar.gz is not a file' in output.err
  assert 'Traceback' not in output.err


def test_an_unknown_dataset_lists_the_known_ones(capsys):
  with pytest.raises(SystemExit) as caught:
    prepare_data.main(['--dataset=mnist'])
  assert caught.value.code == 2
  assert 'cifar100' in capsys.readouterr().err
