//! The client's gateway as a process, asked over HTTP.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ombra_runtime::transport::Party;
use serde_json::{Value, json};

use super::plans::{self, Folder, continuation};
use super::processes::{Serving, TOKENIZER, configurations, ombra_run};

/// Writes turns as their words.
const TEMPLATE: &str = "{% for message in messages %}{{ message.content }} {% endfor %}";

/// A gateway under way, ended with the test.
struct Gateway {
    child: Child,
    address: SocketAddr,
}

impl Gateway {
    fn start(plan: &Path, arguments: &[&str]) -> Gateway {
        let errors = fs::File::create(plan.join("gateway-errors")).unwrap();
        let mut child = ombra_run()
            .arg("gateway")
            .arg(plan)
            .args(["--listen", "127.0.0.1:0", "--threads", "1"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready at http://").and_then(|line| line.strip_suffix('/'));
        let address = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        Gateway { child, address }
    }

    /// Sends a request and gives the head of the answer, and a reader of its body.
    fn send(&self, head: &str, more: &[(&str, &str)], body: &str) -> (u16, String, Box<dyn BufRead>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut text = format!("{head} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        let own = [("Host", self.address.to_string()), ("Content-Type", "application/json".to_owned())];
        for (name, value) in own.iter().filter(|(own, _)| !more.iter().any(|(name, _)| name == own)) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        for (name, value) in more.iter().filter(|(_, value)| !value.is_empty()) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        // A request that is refused early is not read to its end.
        let _ = stream.write_all(format!("{text}\r\n{body}").as_bytes());
        let mut stream = BufReader::new(stream);
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut answer).unwrap() > 0, "{answer}");
        }
        let answer = answer.to_lowercase();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let is_chunked = answer.contains("transfer-encoding: chunked");
        (status, answer, if is_chunked { Box::new(BufReader::new(Chunked(stream, 0))) } else { Box::new(stream) })
    }

    fn get(&self, path: &str, more: &[(&str, &str)]) -> (u16, String, String) {
        let (status, head, mut body) = self.send(&format!("GET {path}"), more, "");
        let mut text = String::new();
        body.read_to_string(&mut text).unwrap();
        (status, head, text)
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, mut answer) = self.send(&format!("POST {path}"), &[], &body.to_string());
        let mut text = String::new();
        answer.read_to_string(&mut text).unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }

    fn chat(&self, fields: Value) -> (u16, Value) {
        self.post("/v1/chat/completions", &with(json!({ "model": "ombra" }), fields))
    }

    /// The data of the events of a streamed answer.
    fn stream(&self, path: &str, fields: Value) -> Vec<String> {
        let body = with(json!({ "model": "ombra", "stream": true }), fields).to_string();
        let (status, head, answer) = self.send(&format!("POST {path}"), &[], &body);
        assert!(status == 200 && head.contains("text/event-stream"), "{head}");
        data(answer).collect()
    }

    fn errors(&self, plan: &Path) -> String {
        fs::read_to_string(plan.join("gateway-errors")).unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A body in chunks, of which so many bytes of the present one are left.
struct Chunked(BufReader<TcpStream>, usize);

impl Read for Chunked {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.1 == 0 {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            self.1 = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            if self.1 == 0 {
                return Ok(0);
            }
        }
        let most = into.len().min(self.1);
        let count = self.0.read(&mut into[..most])?;
        self.1 -= count;
        if self.1 == 0 {
            self.0.read_line(&mut String::new())?;
        }
        Ok(count)
    }
}

fn data(body: impl BufRead) -> impl Iterator<Item = String> {
    body.lines().map_while(Result::ok).filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
}

fn with(mut fields: Value, more: Value) -> Value {
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fields
}

/// A plan with a tokenizer and a template for chats.
fn talking() -> Folder {
    let folder = plans::cached();
    plans::add_file(&folder, "tokenizer.json", TOKENIZER.as_bytes());
    plans::add_file(&folder, "chat_template.jinja", TEMPLATE.as_bytes());
    folder
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

fn words(tokens: &[i64]) -> String {
    tokens.iter().map(|&token| ["a", "b", "c", "d", "e", "f"][token as usize]).collect::<Vec<_>>().join(" ")
}

#[test]
fn chats_and_completions_are_answered_whole_and_in_pieces() {
    let plan = talking();
    let (_keys, [client, server, helper]) = configurations();
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start(&plan.0, Party::Server, &server);
    let gateway = Gateway::start(&plan.join("public"), &["--config", client.to_str().unwrap()]);

    let (status, _, listed) = gateway.get("/v1/models", &[]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((status, &listed["data"][0]["id"], &listed["object"]), (200, &json!("ombra"), &json!("list")));
    assert_eq!(gateway.get("/v1/models/ombra", &[]).0, 200);

    // A turn, and another one after it, of which the session has all but the new words.
    let expected = continuation(&[3, 1, 4], 3);
    let (status, first) = gateway.chat(json!({ "messages": user("d b e"), "max_tokens": 3 }));
    assert_eq!(status, 200, "{first}");
    let choice = &first["choices"][0];
    assert_eq!(choice["message"], json!({ "role": "assistant", "content": words(&expected), "refusal": null }));
    assert_eq!((&choice["finish_reason"], &first["object"]), (&json!("length"), &json!("chat.completion")));
    let usage = |prompt: u64, completion: u64, cached: u64| {
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
                "prompt_tokens_details": { "cached_tokens": cached } })
    };
    assert_eq!(first["usage"], usage(3, 3, 0));
    let all = [&[3, 1, 4][..], &expected, &[2]].concat();
    let turns = json!([
        { "role": "user", "content": [{ "type": "text", "text": "d b" }, { "type": "text", "text": " e" }] },
        { "role": "assistant", "content": words(&expected), "tool_calls": [], "refusal": null },
        { "role": "developer", "content": "c", "name": "somebody" },
    ]);
    let (_, second) = gateway.chat(json!({ "messages": turns, "max_completion_tokens": 2, "temperature": 0, "n": 1 }));
    assert_eq!(second["choices"][0]["message"]["content"], words(&continuation(&all, 2)));
    assert_eq!(second["usage"], usage(7, 2, 5));

    // The same in pieces.
    let asked = json!({ "messages": user("d b e"), "max_tokens": 3, "stream_options": { "include_usage": true } });
    let pieces = gateway.stream("/v1/chat/completions", asked);
    assert_eq!(pieces.last().map(String::as_str), Some("[DONE]"));
    let pieces: Vec<Value> =
        pieces[..pieces.len() - 1].iter().map(|piece| serde_json::from_str(piece).unwrap()).collect();
    assert!(pieces.iter().all(|piece| piece["object"] == "chat.completion.chunk" && piece["id"] == pieces[0]["id"]));
    assert_eq!(pieces[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let text: String = pieces.iter().filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, words(&expected));
    assert!(pieces.len() >= 6, "every token comes by itself: {pieces:?}");
    let [.., end, used] = &pieces[..] else { panic!("{pieces:?}") };
    assert_eq!((&end["choices"][0]["finish_reason"], &end["usage"]), (&json!("length"), &Value::Null));
    assert_eq!((&used["choices"], &used["usage"]), (&json!([]), &usage(3, 3, 2)));

    // Texts and tokens as prompts; a string that ends the answer and is no part of it.
    for prompt in [json!("d b e"), json!(["d b e"]), json!([3, 1, 4]), json!([[3, 1, 4]])] {
        let (status, whole) =
            gateway.post("/v1/completions", &json!({ "model": "ombra", "prompt": prompt, "max_tokens": 3 }));
        assert_eq!((status, &whole["choices"][0]["text"]), (200, &json!(words(&expected))), "{whole}");
        assert_eq!(whole["object"], "text_completion");
    }
    let stop = words(&expected[1..2]);
    let asked = json!({ "prompt": "d b e", "stop": [stop, "never"] });
    let (_, stopped) = gateway.post("/v1/completions", &with(json!({ "model": "ombra" }), asked));
    let choice = &stopped["choices"][0];
    let before = words(&expected).split(&stop).next().unwrap().to_owned();
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(before), &json!("stop")), "{stopped}");
    // All that is left, where more is asked for.
    let (_, long) =
        gateway.post("/v1/completions", &json!({ "model": "ombra", "prompt": "d b e", "max_tokens": 4096 }));
    assert_eq!(long["choices"][0]["text"], words(&continuation(&[3, 1, 4], 11)));
    assert_eq!(gateway.errors(&plan.join("public")), "");
}

/// What is asked, the status and the code of its answer.
type Case<'a> = (&'a str, Value, u16, &'a str);

#[test]
fn wrong_requests_are_one_clear_error() {
    let plan = talking();
    let gateway = Gateway::start(&plan.0, &[]);
    let chat = |fields: Value| with(json!({ "model": "ombra", "messages": user("zebra") }), fields);
    let message = |fields: Value| {
        let message =
            with(json!({ "role": "assistant", "content": "zebra", "name": "zebra", "annotations": [] }), fields);
        json!({ "model": "ombra", "messages": [message] })
    };
    let (chats, texts) = ("/v1/chat/completions", "/v1/completions");
    let long = "d ".repeat(14);
    let cases: Vec<Case> = vec![
        (chats, json!({ "messages": user("zebra") }), 400, "missing_required_parameter"),
        (chats, json!({ "model": "ombra" }), 400, "missing_required_parameter"),
        (chats, chat(json!({ "model": "gpt-4o" })), 404, "model_not_found"),
        (chats, chat(json!({ "model": 7 })), 400, "invalid_value"),
        (chats, chat(json!({ "n": 2 })), 400, "unsupported_value"),
        (chats, chat(json!({ "logprobs": true })), 400, "unsupported_value"),
        (chats, chat(json!({ "tools": [{}] })), 400, "unsupported_value"),
        (chats, chat(json!({ "response_format": { "type": "json_object" } })), 400, "unsupported_value"),
        (chats, chat(json!({ "temperature": 1 })), 400, "E0417"),
        (chats, chat(json!({ "temperature": 0.01 })), 400, "E0415"),
        (chats, chat(json!({ "temperature": "1" })), 400, "invalid_value"),
        (chats, chat(json!({ "temperature": 1, "seed": 7 })), 400, "unsupported_value"),
        (chats, chat(json!({ "top_p": 1.5 })), 400, "E0415"),
        (chats, chat(json!({ "presence_penalty": 1 })), 400, "E0417"),
        (chats, chat(json!({ "frequency_penalty": 2.5 })), 400, "E0415"),
        (chats, chat(json!({ "repetition_penalty": 1.2 })), 400, "unsupported_value"),
        (chats, chat(json!({ "top_k": 0.5 })), 400, "invalid_value"),
        (chats, chat(json!({ "zebra": 1 })), 400, "unknown_parameter"),
        (chats, chat(json!({ "max_tokens": 0 })), 400, "invalid_value"),
        (chats, chat(json!({ "max_tokens": -1 })), 400, "invalid_value"),
        (chats, chat(json!({ "stop": "" })), 400, "invalid_value"),
        (chats, chat(json!({ "stop": [1] })), 400, "invalid_value"),
        (chats, chat(json!({ "stream": "yes" })), 400, "invalid_value"),
        (chats, chat(json!({ "stream_options": { "include_usage": true } })), 400, "invalid_value"),
        (chats, chat(json!({ "messages": [] })), 400, "invalid_value"),
        (chats, chat(json!({ "messages": [7] })), 400, "invalid_value"),
        (chats, chat(json!({ "messages": [{ "role": "tool", "content": "zebra" }] })), 400, "unsupported_value"),
        (chats, chat(json!({ "messages": [{ "role": "user" }] })), 400, "invalid_value"),
        (
            chats,
            chat(json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] })),
            400,
            "unsupported_value",
        ),
        (chats, message(json!({ "zebra": 1 })), 400, "unknown_parameter"),
        (chats, message(json!({ "tool_calls": [{}] })), 400, "unsupported_value"),
        (chats, message(json!({ "content": [{ "type": "text", "text": "d", "zebra": 1 }] })), 400, "unknown_parameter"),
        (chats, chat(json!({ "messages": user("") })), 400, "invalid_value"),
        (chats, chat(json!({ "messages": user(&long) })), 400, "context_length_exceeded"),
        (texts, json!({ "model": "ombra", "prompt": "zebra", "echo": true }), 400, "unsupported_value"),
        (texts, json!({ "model": "ombra", "prompt": ["zebra", "zebra"] }), 400, "unsupported_value"),
        (texts, json!({ "model": "ombra", "prompt": [1, "zebra"] }), 400, "invalid_value"),
        (texts, json!({ "model": "ombra", "prompt": [-1] }), 400, "E1006"),
        (texts, json!({ "model": "ombra", "prompt": [6] }), 400, "E1006"),
        (texts, json!({ "model": "ombra", "prompt": [] }), 400, "invalid_value"),
        (texts, json!({ "model": "ombra", "messages": [] }), 400, "unknown_parameter"),
        ("/v1/embeddings", json!({}), 404, "not_found"),
        ("/v1/models", json!({}), 405, "method_not_allowed"),
    ];
    for (path, body, status, code) in cases {
        let (found, answer) = gateway.post(path, &body);
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{path} {body}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains("zebra"), "{message}");
    }
    let post = |more: &[(&str, &str)], body: &str| gateway.send("POST /v1/chat/completions", more, body).0;
    assert_eq!(post(&[], "{"), 400);
    assert_eq!(post(&[], "[1]"), 400);
    assert_eq!(post(&[], &"[".repeat(100_000)), 400);
    assert_eq!(post(&[], &" ".repeat((4 << 20) + 1)), 413);
    assert_eq!(post(&[("Content-Type", "text/plain")], "{}"), 415);
    for more in [
        ("Host", "evil.example"),
        ("Host", ""),
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        let found = post(&[more], "{}");
        assert!(found == 403 || more == ("Host", "") && found == 400, "{more:?}: {found}");
    }
    let own = format!("http://{}", gateway.address);
    let (status, head, page) = gateway.get("/", &[("Origin", &own), ("Sec-Fetch-Site", "same-origin")]);
    assert!(status == 200 && head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{head}");
    assert!(page.contains("page.js") && !page.contains("://"));
    // Nothing of all that was written anywhere, and the gateway answers as before.
    assert_eq!(gateway.errors(&plan.0), "");
    assert_eq!(gateway.chat(json!({ "messages": user("d"), "max_tokens": 1 })).0, 200);
}

#[test]
fn a_key_is_asked_for_where_one_is_given() {
    let plan = talking();
    let key = plan.join("key");
    fs::write(&key, "0123456789abcdef\n").unwrap();
    let arguments = ["--api-key-file", key.to_str().unwrap(), "--model-name", "mine", "--ignore-temperature"];
    let gateway = Gateway::start(&plan.0, &arguments);
    for wrong in ["", "Bearer 0123456789abcdeg", "Bearer", "Basic 0123456789abcdef"] {
        for path in ["/v1/models", "/v1/ombra/status", "/v1/nothing"] {
            let (status, head, body) = gateway.get(path, &[("Authorization", wrong)]);
            assert!(status == 401 && head.contains("www-authenticate: bearer"), "{head}");
            assert!(body.contains("invalid_api_key") && !body.contains("0123456789"), "{body}");
        }
    }
    let right = ("Authorization", "Bearer 0123456789abcdef");
    assert_eq!(gateway.get("/v1/models", &[right]).0, 200);
    assert_eq!(gateway.get("/", &[]).0, 200, "the page asks for the key itself");
    let body = json!({ "model": "mine", "messages": user("d"), "max_tokens": 1, "temperature": 1 }).to_string();
    assert_eq!(gateway.send("POST /v1/chat/completions", &[right], &body).0, 200);

    fs::write(&key, "short\n").unwrap();
    for (arguments, expected) in [
        (&["--api-key-file", key.to_str().unwrap()][..], "E1040"),
        (&["--listen", "0.0.0.0:0"], "--allow-remote"),
        (&["--listen", "0.0.0.0:0", "--allow-remote"], "--allow-anyone"),
        (&["--allow-host", "chat.example:443"], "no port"),
        (&["--sessions", "0"], "E1040"),
        (&["--queue", "100000"], "E1040"),
        (&["--listen", &gateway.address.to_string()], "cannot listen"),
    ] {
        let output = ombra_run().arg("gateway").arg(&plan.0).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && errors.contains(expected), "{arguments:?}: {errors}");
        assert!(output.stdout.is_empty() && !errors.contains("short"), "{errors}");
    }
}

/// One caller hangs up in the middle of an answer, another one waits and is served then, and a third one finds the queue full.
#[test]
fn who_hangs_up_makes_room_and_who_is_too_many_is_told() {
    let plan = talking();
    let gateway = Gateway::start(&plan.0, &["--network", "100Mbps,30ms", "--queue", "1"]);
    let mut status = data(gateway.send("GET /v1/ombra/status", &[], "").2).map(|line| {
        let now: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains("zebra"), "{line}");
        now
    });
    assert_eq!(status.next().unwrap()["sessions"][0]["phase"], "closed");
    let body = json!({ "model": "ombra", "messages": user("zebra d"), "max_tokens": 9, "stream": true }).to_string();
    let (code, _, answer) = gateway.send("POST /v1/chat/completions", &[], &body);
    assert_eq!(code, 200);
    let mut pieces = data(answer);
    assert!(pieces.next().is_some() && pieces.next().is_some());
    let short = json!({ "model": "ombra", "messages": user("zebra e"), "max_tokens": 1 });
    thread::scope(|scope| {
        let waiting = scope.spawn(|| gateway.post("/v1/chat/completions", &short));
        status.find(|now| now["queued"] == 1).expect("it is queued");
        let (code, head, _) = gateway.send("POST /v1/chat/completions", &[], &short.to_string());
        assert!(code == 429 && head.contains("retry-after: "), "{head}");
        drop(pieces);
        let mut steps = Vec::new();
        for now in status.by_ref() {
            steps.push(now["sessions"][0]["done"]["steps"].as_u64().unwrap());
            if now["queued"] == 0 && now["sessions"][0]["phase"] == "idle" {
                break;
            }
        }
        assert!(steps.iter().all(|steps| *steps < 9) && steps.last() == Some(&1), "{steps:?}");
        let (code, answer) = waiting.join().unwrap();
        assert_eq!(code, 200);
        assert_eq!(answer["choices"][0]["message"]["content"], words(&continuation(&[0, 4], 1)));
    });

    // While a step is under way its bytes and rounds grow up to what the plan says. One step may be over between two looks.
    let asked = json!({ "model": "ombra", "messages": user("zebra c"), "max_tokens": 4 });
    let seen: Vec<Value> = thread::scope(|scope| {
        let asking = scope.spawn(|| gateway.post("/v1/chat/completions", &asked));
        let begun = status.by_ref().skip_while(|now| now["sessions"][0]["phase"] == "idle");
        let seen = begun.take_while(|now| now["sessions"][0]["phase"] != "idle").collect();
        assert_eq!(asking.join().unwrap().0, 200);
        seen
    });
    let of = |now: &Value, name: &str| now["sessions"][0]["step"][name].as_u64();
    for name in ["sent", "rounds"] {
        let within = |now: &Value| of(now, name) <= now["sessions"][0]["step"]["predicted"][name].as_u64();
        assert!(seen.iter().all(within), "{name}: {seen:?}");
        let grows = |pair: &[Value]| {
            let same = pair[0]["sessions"][0]["done"]["steps"] == pair[1]["sessions"][0]["done"]["steps"];
            same && of(&pair[0], name).is_some() && of(&pair[0], name) < of(&pair[1], name)
        };
        assert!(seen.windows(2).any(grows), "{name}: {seen:?}");
    }
    assert_eq!(gateway.errors(&plan.0), "");
}

#[test]
fn a_party_that_is_gone_is_an_error_that_names_no_text_and_a_new_one_is_found() {
    let plan = talking();
    let (_keys, [client, server, helper]) = configurations();
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let serving = Serving::start(&plan.0, Party::Server, &server);
    let limited = fs::read_to_string(&client).unwrap() + "\n[limits]\nconnect_s = 0.5\n";
    fs::write(&client, limited).unwrap();
    let gateway = Gateway::start(&plan.0, &["--config", client.to_str().unwrap()]);
    let asked = json!({ "messages": user("zebra d"), "max_tokens": 1 });
    assert_eq!(gateway.chat(asked.clone()).0, 200);
    drop(serving);
    for _ in 0..2 {
        let (status, answer) = gateway.chat(asked.clone());
        let code = answer["error"]["code"].as_str().unwrap();
        assert!([502, 503].contains(&status) && code.starts_with("E07"), "{status}: {answer}");
        let told = answer["error"]["message"].as_str().unwrap();
        assert!(!told.contains("127.0.0.1") && !told.contains("help"), "{told}");
        let errors = gateway.errors(&plan.0);
        assert!(errors.contains(code) && !errors.contains("zebra"), "{errors}");
    }
    let errors = gateway.errors(&plan.0);
    assert!(errors.contains("E0707") && errors.contains("127.0.0.1") && errors.contains("help"), "{errors}");
    let _serving = Serving::start(&plan.0, Party::Server, &server);
    assert_eq!(gateway.chat(asked).0, 200);
}

/// An answer under way is given whole, the status ends, and so do the process and the parties that it started.
#[test]
fn asked_to_end_it_finishes_what_is_under_way() {
    let plan = talking();
    let mut gateway = Gateway::start(&plan.0, &["--network", "100Mbps,10ms"]);
    let status = data(gateway.send("GET /v1/ombra/status", &[], "").2);
    let body = json!({ "model": "ombra", "messages": user("d b e"), "max_tokens": 6, "stream": true }).to_string();
    let mut pieces = data(gateway.send("POST /v1/chat/completions", &[], &body).2);
    assert!(pieces.next().is_some() && pieces.next().is_some());
    let done = Command::new("kill").args(["-TERM", &gateway.child.id().to_string()]).status().unwrap();
    assert!(done.success());
    let pieces: Vec<String> = pieces.collect();
    assert!(pieces.len() >= 6 && pieces.last().is_some_and(|piece| piece == "[DONE]"), "{pieces:?}");
    assert!(status.count() > 0);
    let begin = Instant::now();
    let ended = loop {
        if let Some(ended) = gateway.child.try_wait().unwrap() {
            break ended;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "it does not end");
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended.code(), Some(0));
    assert!(TcpStream::connect(gateway.address).is_err());
    assert_eq!(gateway.errors(&plan.0), "");
}
