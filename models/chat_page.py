"""The page at `/`: a conversation in the browser, in plain HTML, and nothing from elsewhere."""

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>minigrad</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem;
  color: #222; background: #fff }
#talk > div { white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0; padding: .5rem .8rem;
  border-radius: .5rem }
.user { background: #e8eef7; margin-left: 3rem !important }
.assistant { background: #f3f3f0 }
.error { color: #b00000 }
p, details { color: #595959; font-size: .85rem }
form { display: flex; flex-wrap: wrap; gap: .5rem; position: sticky; bottom: 0; background: inherit;
  padding: .5rem 0 }
textarea { flex: 1 1 12rem; font: inherit; padding: .4rem; resize: vertical }
label { display: inline-block }
button { font: inherit; padding: .4rem .9rem }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b } .user { background: #26344a }
  .assistant { background: #2a2a28 } .error { color: #ff9d9d } p, details { color: #aaa }
}
</style>
<main>
<h1>minigrad</h1>
<div id="talk" aria-live="polite"></div>
<form id="form">
<textarea id="text" rows="2" placeholder="Say something" autofocus aria-label="Message"></textarea>
<button id="send">Send</button>
<button id="stop" type="button" disabled>Stop</button>
<button id="clear" type="button">New</button>
</form>
<p>What was said stays in this tab until it is closed or you choose New, also when the page is
loaded anew; settings do not.</p>
<details><summary id="settings">Settings</summary>
<label>Temperature
<input id="temperature" type="number" min="0" max="2" step="0.1" value="0.7"></label>
<label>API key <input id="key" type="password" autocomplete="off"></label>
</details>
</main>
<script>
"use strict";
const $ = id => document.getElementById(id);
let messages = JSON.parse(sessionStorage.getItem("messages") || "[]"), going = null;
function show(role, text) {
  const box = document.createElement("div");
  box.className = role;
  box.textContent = text;
  $("talk").append(box);
  box.scrollIntoView({block: "end"});
  return box;
}
function keep() { sessionStorage.setItem("messages", JSON.stringify(messages)); }
if (messages.at(-1)?.role === "user") $("text").value = messages.pop().content;  // left unanswered
messages.forEach(message => show(message.role, message.content));
async function ask(text) {
  const mine = messages;  // "New" makes others
  mine.push({role: "user", content: text});
  keep();
  const boxes = [show("user", text), show("assistant", "")], box = boxes[1];
  let answer = "", failure = "";
  going = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  try {
    const headers = {"Content-Type": "application/json"};
    if ($("key").value) headers.Authorization = "Bearer " + $("key").value;
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers, signal: going.signal,
      body: JSON.stringify({
        messages: mine, stream: true, temperature: Number($("temperature").value)}),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const reader = response.body.getReader(), decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      rest += decoder.decode(value, {stream: true});
      const events = rest.split("\\n\\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        answer += chunk.choices[0]?.delta?.content || "";
        box.textContent = answer;
        box.scrollIntoView({block: "end"});
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") failure = error.message;
  }
  if (answer) mine.push({role: "assistant", content: answer});
  else {  // it can be asked again
    boxes.forEach(one => one.remove());
    mine.pop();
    if (mine === messages) $("text").value ||= text;
  }
  if (failure) show("error", failure);
  keep();
  going = null;
  $("send").disabled = false;
  $("stop").disabled = true;
}
$("form").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || going) return;
  document.querySelectorAll(".error").forEach(one => one.remove());
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => going && going.abort());
$("clear").addEventListener("click", () => {
  if (going) going.abort();
  messages = [];
  keep();
  $("talk").replaceChildren();
});
</script>
"""
