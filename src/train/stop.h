// Stopping on request: SIGINT, SIGTERM and SIGHUP set a flag that every long loop polls.
#pragma once

namespace qt {

// Takes the signals; call it before the first thread is started. The first signal asks for a clean stop; a
// second one ends the process at once (128 + signal): what is on disk stays consistent either way.
void install_stop_handlers();

// True once a stop was asked for, by a signal or by request_stop().
bool stop_requested();
void request_stop();
// Tests: back to "not asked".
void clear_stop_request();

// Throws StopRequested when a stop was asked for. The message is for the user; loops call it between pieces
// of work.
void poll_stop();

}  // namespace qt
