import { InvalidInput, ModelError, TimedOut, TooLarge } from './errors.js';
import { errorOf, host, own } from './host.js';
import { Tensor } from './tensor.js';

// An invalid argument is a tensor the graph does not take, hence the caller's input. All others mean that the model failed,
// which repeating the call does not mend.
const ERRORS = { 'invalid-argument': InvalidInput, timeout: TimedOut, 'too-large': TooLarge };

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
    return new Outputs(
      this.name,
      outputs.map(({ name, dimensions, ty, data }) => [name, new Tensor(dimensions, own(data), ty.toLowerCase())]),
    );
  }
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
