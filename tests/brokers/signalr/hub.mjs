// A SignalR hub whose messages are written and checked by Microsoft's own protocol classes (npm @microsoft/signalr).
// This file adds the server's side: negotiation, dispatch, groups, keep-alive, a queue that redelivers, and /control/.
// node hub.mjs --port P [--token-file F] [--keep-alive MS] [--client-timeout MS] [--max-message BYTES] [--queue FILE]
// [--cert FILE --key FILE [--ca FILE]]. WebSockets only.
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { text } from "node:stream/consumers";
import { parseArgs } from "node:util";
import { JsonHubProtocol, MessageType, NullLogger } from "@microsoft/signalr";
import { MessagePackHubProtocol } from "@microsoft/signalr-protocol-msgpack";
import { decode } from "@msgpack/msgpack";
import { WebSocketServer } from "ws";

const string = (fallback) => ({ type: "string", default: fallback });
const { values: options } = parseArgs({ options: {
  port: string("0"), "token-file": string(""), queue: string(""), cert: string(""), key: string(""), ca: string(""),
  "keep-alive": string("15000"), "client-timeout": string("30000"), "max-message": string("32768"),
} });
const SEPARATOR = "\x1e";
const connections = new Set();
const negotiated = new Set();
const seen = { received: [], requests: [], joined: [], answers: {}, pings: 0 };

/** Events that are kept until they are acknowledged, over restarts too if there is a file for them. */
const queue = existsSync(options.queue) ? JSON.parse(readFileSync(options.queue)) : { next: 1, done: 0, waiting: [] };
const keep = () => options.queue && writeFileSync(options.queue, JSON.stringify(queue));
const offer = (connection, item) => connection.write(connection.invocation(item.target, [item], item.headers));

const record = (connection, headers, ...args) => void seen.received.push({ headers, arguments: args.map(readable) });
const methods = {
  conformance: record,
  send: record,
  echo: (_, __, value) => value,
  fail: () => { throw new Error("hub says no"); },
  hang: () => new Promise(() => {}),
  quit: (c) => c.socket.terminate(),
  join(c, _, group) { c.groups.add(group); seen.joined.push(group); },
  subscribe(c, _, last) { // at least once: whatever has not been acknowledged, or stands after a position
    seen.joined.push(last ?? null);
    c.subscribed = true;
    queue.waiting.filter((item) => item.id > (last ?? 0)).forEach((item) => offer(c, item));
  },
  acknowledge(_, __, ids) {
    const before = queue.waiting.length;
    queue.waiting = queue.waiting.filter((item) => !ids.includes(item.id));
    queue.done += before - queue.waiting.length;
    keep();
  },
};

/** Binary values as {base64}, for JSON. */
function readable(value) {
  return value instanceof Uint8Array ? { base64: Buffer.from(value).toString("base64") } : value;
}
/** And back. */
function binary(value) {
  return value?.base64 === undefined ? value : Buffer.from(value.base64, "base64");
}

/** Cuts what came in into single messages, each with its raw frame for Microsoft's parser. */
function* split(isBinary, data) {
  if (!isBinary) {
    for (const each of data.toString().split(SEPARATOR).filter(Boolean)) {
      yield { fields: JSON.parse(each), frame: each + SEPARATOR };
    }
    return;
  }
  for (let at = 0; at < data.length;) {
    let start = at, length = 0, shift = 0;
    do { length |= (data[start] & 0x7f) << shift; shift += 7; } while (data[start++] & 0x80);
    const [type, headers, invocationId, target, args] = decode(data.subarray(start, start + length));
    const frame = Uint8Array.from(data.subarray(at, start + length)).buffer;
    yield { fields: { type, headers, invocationId, target, arguments: args }, frame };
    at = start + length;
  }
}

class Connection {
  groups = new Set(); subscribed = false; heard = Date.now();
  constructor(socket, isBinary) {
    this.socket = socket; this.isBinary = isBinary;
    this.protocol = isBinary ? new MessagePackHubProtocol() : new JsonHubProtocol();
    this.timer = setInterval(() => {
      if (Date.now() - this.heard > Number(options["client-timeout"])) this.close("client timeout");
      else this.write({ type: MessageType.Ping });
    }, Number(options["keep-alive"]));
  }
  write(...messages) {
    const frames = messages.map((m) => this.protocol.writeMessage(m));
    this.socket.send(this.isBinary ? Buffer.concat(frames.map((f) => Buffer.from(f))) : frames.join(""));
  }
  invocation(target, args, headers, invocationId) { // with stream ids in MessagePack only, as ASP.NET Core has it
    const streamIds = this.isBinary ? [] : undefined;
    return { type: MessageType.Invocation, headers, invocationId, target, arguments: args, streamIds };
  }
  close(error) { this.write({ type: MessageType.Close, error, allowReconnect: true }); this.socket.close(); }
  receive(data) {
    this.heard = Date.now();
    for (const { fields, frame } of split(this.isBinary, data)) {
      for (const message of this.protocol.parseMessages(frame, NullLogger.instance)) {
        if (message.type === MessageType.Invocation) void this.run(message, fields);
        else if (message.type === MessageType.Completion) seen.answers[message.invocationId] = message.error ?? message.result;
        else if (message.type === MessageType.Ping) seen.pings++;
        else if (message.type === MessageType.Close) this.socket.close();
      }
    }
  }
  async run(message, fields) { // Microsoft's parser is a client's, and drops headers in MessagePack
    const answer = { type: MessageType.Completion, invocationId: message.invocationId };
    try {
      const method = methods[message.target.toLowerCase()];
      if (!method) throw new Error(`Method does not exist: ${message.target}`);
      const result = await method(this, fields.headers ?? {}, ...message.arguments);
      if (result !== undefined) answer.result = result;
    } catch (error) { answer.error = error.message; }
    if (message.invocationId && this.socket.readyState === this.socket.OPEN) this.write(answer);
  }
}

function control(query, action, body) {
  const members = [...connections].filter((c) => !query.has("group") || c.groups.has(query.get("group")));
  if (action === "invoke") { // {target, arguments, headers, id}: an event, for which the hub waits if it has an id
    const { target, arguments: args, headers, id } = JSON.parse(body);
    members.forEach((c) => c.write(c.invocation(target, args.map(binary), headers, id)));
  } else if (action === "enqueue") { // an event that is kept until it is acknowledged
    const item = { ...JSON.parse(body), id: queue.next++ };
    queue.waiting.push(item);
    keep();
    [...connections].filter((c) => c.subscribed).forEach((c) => offer(c, item));
  } else if (action === "reset") {
    Object.assign(seen, { received: [], requests: [], joined: [], answers: {}, pings: 0 });
    Object.assign(queue, { done: 0, waiting: [] });
    keep();
  } else if (action === "push") {
    const number = (name, fallback) => Number(query.get(name) ?? fallback);
    const count = number("count", 1), batch = number("batch", 1), pad = "x".repeat(number("size", 0));
    for (let i = 0; i < count; i += batch) {
      const numbers = Array.from({ length: Math.min(batch, count - i) }, (_, k) => i + k);
      members.forEach((c) => c.write(...numbers.map((n) => c.invocation("event", [{ i: n, pad }]))));
    }
  } else if (action === "abort") members.forEach((c) => c.socket.terminate());
  else if (action === "close") members.forEach((c) => c.close("the hub is told to"));
  else if (action === "ping") members.forEach((c) => c.socket.ping(Buffer.from([0xff, 0xfe])));
  else if (action === "raw") members.forEach((c) => c.socket.send(c.isBinary ? Buffer.from(body, "base64") : body));
  const buffered = Math.max(0, ...members.map((c) => c.socket.bufferedAmount));
  return JSON.stringify({ ...seen, connections: connections.size, waiting: queue.waiting.length, done: queue.done, buffered });
}

const allowed = (request) => {
  const token = request.headers.authorization?.replace("Bearer ", "") ?? "";
  const custom = request.headers["x-plant"];
  seen.requests.push({ method: request.method, url: request.url, token, custom });
  return !options["token-file"] || token === readFileSync(options["token-file"], "utf8");
};
const files = { cert: options.cert, key: options.key, ca: options.ca };
const tls = Object.fromEntries(Object.entries(files).filter(([, file]) => file).map(([name, file]) => [name, readFileSync(file)]));
if (options.ca) Object.assign(tls, { requestCert: true, rejectUnauthorized: true });
const answer = async (request, response) => {
  const url = new URL(request.url, "http://hub");
  const body = await text(request);
  if (url.pathname.startsWith("/control/")) return response.end(control(url.searchParams, url.pathname.slice(9), body));
  if (url.pathname === "/elsewhere/negotiate") { // as Azure SignalR does
    return response.end(JSON.stringify({ url: `http://${request.headers.host}/hub`, accessToken: url.searchParams.get("give") }));
  }
  if (url.pathname !== "/hub/negotiate") return response.writeHead(404).end();
  if (!allowed(request)) return response.writeHead(401).end();
  const connectionId = randomUUID(), connectionToken = randomUUID();
  negotiated.add(connectionToken);
  const availableTransports = [{ transport: "WebSockets", transferFormats: ["Text", "Binary"] }];
  response.end(JSON.stringify({ negotiateVersion: 1, connectionId, connectionToken, availableTransports }));
};
const server = options.cert ? https.createServer(tls, answer) : http.createServer(answer);
const sockets = new WebSocketServer({ noServer: true, maxPayload: Number(options["max-message"]) });
server.on("upgrade", (request, socket, head) => {
  const id = new URL(request.url, "http://hub").searchParams.get("id");
  const refusal = !allowed(request) ? "401 Unauthorized" : id !== null && !negotiated.delete(id) ? "404 Not Found" : "";
  if (refusal) return socket.end(`HTTP/1.1 ${refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
  sockets.handleUpgrade(request, socket, head, (ws) => ws.once("message", (data) => open(ws, data)).on("error", () => ws.terminate()));
});

function open(socket, data) {
  const { protocol } = JSON.parse(data.subarray(0, data.indexOf(SEPARATOR)).toString());
  if (!["json", "messagepack"].includes(protocol)) {
    socket.send(JSON.stringify({ error: `The protocol '${protocol}' is not supported.` }) + SEPARATOR);
    return socket.close();
  }
  socket.send(protocol === "json" ? `{}${SEPARATOR}` : Buffer.from(`{}${SEPARATOR}`));
  const connection = new Connection(socket, protocol === "messagepack");
  connections.add(connection);
  socket.on("message", (bytes) => { try { connection.receive(bytes); } catch (error) { connection.close(error.message); } });
  socket.on("close", () => { clearInterval(connection.timer); connections.delete(connection); });
}

process.on("SIGTERM", () => process.exit(0));
server.listen(Number(options.port), "127.0.0.1");
