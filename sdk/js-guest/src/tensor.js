import { InvalidInput, ModelError } from './errors.js';

// By the names of wasi:nn: bytes of one element, and the typed array of its values; the halves have none.
const TYPES = {
  fp16: [2, null],
  fp32: [4, Float32Array],
  fp64: [8, Float64Array],
  bf16: [2, null],
  u8: [1, Uint8Array],
  i32: [4, Int32Array],
  i64: [8, BigInt64Array],
};

/** A dense tensor in row-major order and little-endian bytes. */
export class Tensor {
  constructor(dims, values, type = typeOf(values)) {
    const [size, Values] = lookUp(type);
    const bytes = bytesOf(values, type, Values);
    const wanted = dims.reduce((product, dim) => product * dim, 1);
    if (wanted * size !== bytes.length) {
      throw new InvalidInput(
        `a tensor of shape [${dims.join(', ')}] needs ${wanted} values, but ${Math.floor(bytes.length / size)} values ` +
          `(${bytes.length} bytes of ${type}) were given`,
      );
    }
    this.dims = Array.from(dims);
    this.type = type;
    this.bytes = bytes;
  }

  static ofRows(rows, type = 'fp32') {
    const width = rows.length > 0 ? rows[0].length : 0;
    const uneven = rows.findIndex((row) => row.length !== width);
    if (uneven >= 0) throw new InvalidInput(`row ${uneven} has ${rows[uneven].length} values, row 0 has ${width}`);
    return new Tensor([rows.length, width], rows.flat(), type);
  }

  get length() {
    return this.bytes.length / lookUp(this.type)[0];
  }

  values() {
    const [size, Values] = lookUp(this.type);
    if (Values === null) throw new ModelError(`JavaScript has no numbers of type ${this.type}: use \`bytes\``);
    // A view must begin where an element may lie.
    const bytes = this.bytes.byteOffset % size === 0 ? this.bytes : this.bytes.slice();
    return new Values(bytes.buffer, bytes.byteOffset, bytes.length / size);
  }

  rows() {
    if (this.dims.length !== 2) {
      throw new ModelError(`a tensor of shape [${this.dims.join(', ')}] has no rows of numbers; use \`values\``);
    }
    const [rows, width] = this.dims;
    const values = Array.from(this.values());
    return Array.from({ length: rows }, (_, row) => values.slice(row * width, (row + 1) * width));
  }
}

function lookUp(type) {
  if (!Object.hasOwn(TYPES, type)) {
    throw new ModelError(`there is no element type '${type}'; there are ${Object.keys(TYPES).join(', ')}`);
  }
  return TYPES[type];
}

/** A typed array says itself what it holds; numbers are fp32, which most models take. */
function typeOf(values) {
  const found = Object.entries(TYPES).find(([, [, Values]]) => Values !== null && values instanceof Values);
  return found === undefined ? 'fp32' : found[0];
}

function bytesOf(values, type, Values) {
  if (values instanceof Uint8Array && type !== 'u8') return values;
  if (ArrayBuffer.isView(values) && values.constructor === Values) {
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  }
  if (Values === null) throw new ModelError(`JavaScript has no numbers of type ${type}: give bytes`);
  const wanted = type === 'i64' ? 'bigint' : 'number';
  const integral = type === 'i32' || type === 'u8';
  const list = Array.from(values, (value) => (wanted === 'bigint' && Number.isSafeInteger(value) ? BigInt(value) : value));
  const wrong = list.findIndex((value) => typeof value !== wanted || (integral && !Number.isInteger(value)));
  if (wrong >= 0) throw new InvalidInput(`value ${wrong} is no number that fits ${type}`);
  const typed = Values.from(list);
  const wrapped = integral || type === 'i64' ? typed.findIndex((value, index) => value !== list[index]) : -1;
  if (wrapped >= 0) throw new InvalidInput(`value ${wrapped} is no number that fits ${type}`);
  return new Uint8Array(typed.buffer);
}
