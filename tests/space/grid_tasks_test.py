"""The grid's tasks can be run in their order."""

from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib


def test_tasks_come_step_after_step_and_read_what_is_there():
  network = network_lib.derived_network(
    grid.NetworkSpec(4, 5, 4, scales=3, image_shape=(33, 32, 1)),
    genotype.DARTS_V1,
  )
  rows = network.tasks()
  steps = [task.step for task in rows]
  assert steps == sorted(steps)
  made = {'images'}
  cells = {cell.output.name: cell for cell in network.plan.cells}
  for task in rows:
    for name in task.inputs:
      if name in cells:
        reduction = cells[name].reduction
        wiring = network.reduction if reduction else network.normal
        assert {f'{name}/{state}' for state in wiring.concat} <= made
      else:
        assert name in made
    made.add(task.output)
