import { InvalidInput, ModelError, TimedOut, TooLarge } from './errors.js';
import { errorOf, host, own } from './host.js';
import { Tensor } from './tensor.js';

// An invalid argument is a tensor the graph does not take, hence the caller's input. All others mean that the model failed,
// which repeating the call does not mend.
const ERRORS = { 'invalid-argument': InvalidInput, timeout: TimedOut, 'too-large': TooLarge };

// In the order of wasi:nn, by which outputs name them.
const TYPES = ['fp16', 'fp32', 'fp64', 'bf16', 'u8', 'i32', 'i64'];

// The values of each output begin at a multiple of it.
const ALIGNMENT = 16;

/** A graph of the package, by its name in the manifest. */
export class Graph {
  constructor(name) {
    this.name = name;
  }

  run(inputs) {
    const tensors = Object.entries(inputs).map(([name, tensor]) => ({
      name,
      dimensions: Uint32Array.from(tensor.dims),
      ty: tensor.type.toUpperCase(),
      data: tensor.bytes,
    }));
    let outputs;
    try {
      outputs = host.compute.run(this.name, tensors);
    } catch (thrown) {
      const { code, message } = errorOf(thrown);
      throw new (ERRORS[code] ?? ModelError)(`failed to compute graph \`${this.name}\`: ${message}`);
    }
    return new Outputs(this.name, unpacked(outputs));
  }
}

/** All outputs by name, which the host packs in two lists (interface `compute` in wit/endpoint.wit). */
function unpacked({ heads, data }) {
  const [numbers, values] = [Uint32Array.from(heads), own(data)];
  const found = [];
  for (let at = 0, end = 0; at < numbers.length; ) {
    const [type, size, axes] = numbers.subarray(at, at + 3);
    const dims = numbers.slice(at + 3, at + 3 + axes);
    const length = numbers[at + 3 + axes];
    at += 4 + axes;
    const name = new TextDecoder().decode(new Uint8Array(numbers.buffer, 4 * at, length));
    at += Math.ceil(length / 4);
    const begin = Math.ceil(end / ALIGNMENT) * ALIGNMENT;
    end = begin + size;
    found.push([name, new Tensor(dims, values.slice(begin, end), TYPES[type])]);
  }
  return found;
}

/** What a graph gave, by name, in the order of the model file. */
class Outputs {
  #graph;
  #tensors;

  constructor(graph, tensors) {
    this.#graph = graph;
    this.#tensors = new Map(tensors);
  }

  get(name) {
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) {
      throw new ModelError(
        `graph \`${this.#graph}\` has no output \`${name}\`; it gives: ${Array.from(this.#tensors.keys()).join(', ')}`,
      );
    }
    return tensor;
  }

  names() {
    return Array.from(this.#tensors.keys());
  }

  [Symbol.iterator]() {
    return this.#tensors.values();
  }
}
