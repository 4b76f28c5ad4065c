"""LiteRT: one .tflite file, with a signature for each step.

Whoever runs it calls `step_0`, and `step_1` with what that has left if the
answer is not sure enough. Signatures take one image. The file is made from the
plain layers, so that it holds convolutions and pools, and no kernels of ours
taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ai_edge_litert import interpreter as interpreter_lib
from ai_edge_quantizer import calibrator
from ai_edge_quantizer import quantizer
from ai_edge_quantizer import recipe
from ai_edge_quantizer import recipe_manager
from ai_edge_quantizer.utils import qsv_utils
import jax
import jax.numpy as jnp
from litert_converter import converter_api_ext as converter
from litert_converter.mlir import ir
from litert_converter.mlir import passmanager
import numpy as np

from ms_ranas_jax import plain_form
from ms_ranas_jax.export import runners
from ms_ranas_jax.export.preprocessing import Preprocessing
from ms_ranas_jax.export.quiet import quiet

LOGITS = 'logits'


def signature_name(step: int) -> str:
  """Returns what the signature of a step is called."""
  return f'step_{step}'


def anytime_model(
  form: plain_form.PlainForm, preprocessing: Preprocessing
) -> bytes:
  """Returns the file.

  `step_0` takes `images`, uint8 (1, height, width, channels), a later step what
  earlier ones have left, float32 (1, height, width, channels) by name. Each
  gives `logits`, float32 (1, classes), and what it leaves for later steps.

  Args:
    form: the network.
    preprocessing: of the images.
  """
  context = ir.Context()
  converter.prepare_mlir_context(context)
  shapes = {plain_form.IMAGES: form.image_shape}
  shapes |= {node.output: shape for node, _, shape in plain_form.shapes(form)}
  modules = []
  for index, step in enumerate(form.steps):
    made = {node.output for node in step.nodes}
    left = [name for name in step.carried if name in made]
    module = ir.Module.parse(
      _lowered(step, left, shapes, preprocessing), context
    )
    converter.set_signature(
      module.operation,
      signature_name=signature_name(index),
      input_names=list(step.inputs),
      output_names=[LOGITS, *left],
    )
    modules.append(module)
  merged = converter.merge_modules(modules)
  converter.run_convert_to_tfl_passes(
    merged,
    passmanager.PassManager(context=context),
    converter.ConvertToTFLConfig(),
  )
  return bytes(converter.export_flatbuffer_to_bytes(merged.operation))


def _lowered(
  step: plain_form.Step,
  left: Sequence[str],
  shapes: Mapping[str, plain_form.Shape],
  preprocessing: Preprocessing,
) -> str:
  """Returns a step on one image as StableHLO."""
  center = preprocessing.center.reshape(1, 1, 1, -1)
  factor = preprocessing.factor.reshape(1, 1, 1, -1)

  def run(*values: jax.Array) -> tuple[jax.Array, ...]:
    carried = dict(zip(step.inputs, values, strict=True))
    if plain_form.IMAGES in carried:
      images = carried[plain_form.IMAGES].astype(jnp.float32)
      carried[plain_form.IMAGES] = (images - center) * factor
    kept, logits = plain_form.run_step(step, carried)
    return logits, *(kept[name] for name in left)

  arguments = [
    jax.ShapeDtypeStruct(
      (1, *shapes[name]),
      jnp.uint8 if name == plain_form.IMAGES else jnp.float32,
    )
    for name in step.inputs
  ]
  # The text: a module of the versioned dialect ends the process.
  return jax.jit(run).lower(*arguments).as_text()


def quantize(
  model: bytes, calibration: Sequence[Mapping[str, np.ndarray]]
) -> bytes:
  """Returns the file in 8 bits: static, weights per channel.

  What goes in and out, and from step to step, stays as it is: the ranges of a
  step that few images reach are others than those of the step before.

  Args:
    model: the file in floats.
    calibration: per step what images that reach it bring, by name, an axis of
      images first; as the signatures take them.
  """
  data = {
    signature_name(step): [
      {name: value[row : row + 1] for name, value in fed.items()}
      for row in range(len(next(iter(fed.values()))))
    ]
    for step, fed in enumerate(calibration)
  }
  as_they_are = [
    {'regex': '.*', 'operation': place, 'algorithm_key': 'no_quantize'}
    for place in ('INPUT', 'OUTPUT')
  ]
  with quiet():
    wanted = [*recipe.static_wi8_ai8(), *as_they_are]
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(wanted)
    # The quantizer's own choice, an average of the ranges of single images,
    # cuts off what stands out, and depends on their order.
    ranges = calibrator.Calibrator(
      bytearray(model), qsv_update_func=qsv_utils.min_max_update
    )
    ranges.calibrate(data, manager)
    made = quantizer.Quantizer(bytearray(model), wanted)
    found = made.quantize(ranges.get_model_qsvs())
    return bytes(found.quantized_model)


@dataclasses.dataclass(frozen=True, eq=False)
class LitertSteps:
  """The file in its runtime, see `runners.Runner`; one image at a time.

  Attributes:
    signatures: what runs each step.
  """

  signatures: tuple[Any, ...]

  @property
  def num_exits(self) -> int:
    """The number of exits."""
    return len(self.signatures)

  def take(
    self, carried: runners.Carried, step: int
  ) -> tuple[runners.Carried, np.ndarray]:
    """Takes a step, see `runners.Runner`."""
    run = self.signatures[step]
    made = run(**{name: carried[name] for name in run.get_input_details()})
    logits = made.pop(LOGITS)
    return {**carried, **made}, logits


def load(model: bytes, threads: int | None = None) -> LitertSteps:
  """Loads the file.

  Args:
    model: what stands in it.
    threads: that it is computed by; None is what the runtime takes.
  """
  found = interpreter_lib.Interpreter(model_content=model, num_threads=threads)
  return LitertSteps(
    tuple(
      found.get_signature_runner(signature_name(step))
      for step in range(len(found.get_signature_list()))
    )
  )


def signatures(model: bytes) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """Returns what the signatures take and give, ready for JSON.

  Args:
    model: what stands in the file.

  Returns:
    Name of the signature -> `inputs` and `outputs`, each a list of `name`,
    `dtype` and `shape`.
  """

  def entries(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
      {
        'name': name,
        'dtype': np.dtype(detail['dtype']).name,
        'shape': detail['shape'].tolist(),
      }
      for name, detail in details.items()
    ]

  return {
    signature_name(step): {
      'inputs': entries(run.get_input_details()),
      'outputs': entries(run.get_output_details()),
    }
    for step, run in enumerate(load(model).signatures)
  }
