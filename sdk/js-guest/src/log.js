import { host } from './host.js';

const line = (level) => (...values) => host.logging.log(level, values.map(show).join(' '));

/** Lines for the endpoint's log. `console` writes there too. */
export const log = { debug: line('debug'), info: line('info'), warn: line('warn'), error: line('error') };

/** Makes `console` write to the endpoint's log, in the engine that has no other place for it. */
export function takeConsole() {
  const { debug, info, warn, error } = log;
  globalThis.console = { ...globalThis.console, debug, trace: debug, log: info, info, warn, error };
}

function show(value) {
  if (typeof value === 'string') return value;
  if (isError(value)) return describe(value);
  try {
    return JSON.stringify(value) ?? String(value);
  } catch {
    return String(value);
  }
}

/** The engine's own part has a realm of its own, whose errors are not of the `Error` here. */
export function isError(value) {
  return value instanceof Error || (typeof value === 'object' && value !== null && typeof value.stack === 'string');
}

/** An exception with its stack; the engine's stacks do not say what was thrown. */
export function describe(thrown) {
  if (!isError(thrown)) return `thrown: ${show(thrown)}`;
  const stack = (thrown.stack ?? '').trim();
  const head = `${thrown.name}: ${thrown.message}`;
  if (stack === '' || stack.startsWith(head)) return stack || head;
  return `${head}\n${stack.replace(/^/gm, '    at ')}`;
}
