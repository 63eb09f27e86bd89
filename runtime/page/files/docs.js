// Lists what /openapi.json describes.

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

function call(path, method, details) {
  const example = method === "post" ? `curl -X POST --data-binary @photo.jpg -H 'Content-Type: image/jpeg' ${location.origin}${path}` : `curl ${location.origin}${path}`;
  const parts = [make("summary", "", make("b", method.toUpperCase()), make("code", path), ` ${details.summary ?? ""}`)];
  if (details.description) parts.push(make("p", details.description));
  const rows = (details.parameters ?? []).map((one) =>
    make("tr", "", make("th", "", make("code", one.name)), make("td", one.description ?? one.schema?.description ?? ""), make("td", one.required ? "required" : String(one.schema?.default ?? ""))));
  if (rows.length) parts.push(make("table", "", ...rows));
  const bodies = Object.keys(details.requestBody?.content ?? {});
  if (bodies.length) parts.push(make("p", `Body: ${bodies.join(", ")}`));
  if (!path.startsWith("/v2") || method === "get") parts.push(make("pre", example));
  return make("details", "", ...parts);
}

const place = document.getElementById("api");
try {
  const answer = await fetch("/openapi.json");
  const api = await answer.json();
  if (!answer.ok) throw new Error(api.error);
  const groups = {};
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, details] of Object.entries(methods)) {
      (groups[details.tags?.[0] ?? "other"] ??= []).push(call(path, method, details));
    }
  }
  const about = api.info.description.split("\n\n").map((text) => make("p", text.replaceAll("`", "")));
  const lists = Object.entries(groups).flatMap(([name, calls]) => [make("h2", name[0].toUpperCase() + name.slice(1)), ...calls]);
  place.replaceChildren(make("h1", `${api.info.title} ${api.info.version}`), ...about, ...lists);
} catch (error) {
  place.replaceChildren(make("p", `The description cannot be read: ${error.message}`));
}
