// Calibration: how long a step of a planned run takes on this machine, measured in seconds on the same model
// with fewer layers. All layers are alike, so that what they take grows by the same amount for each; what is
// there once (embedding, head, loss, constants of a step) is in every measurement. Nothing of a run is
// touched, and no data is needed.
#pragma once

#include <cstdint>
#include <string>

#include "src/plan/estimate.h"

namespace qt {

struct Calibration {
  Range step_s;                                  // of a whole optimizer step
  Range evaluation_batch_s;                      // of one micro-batch of an evaluation
  std::int64_t few_layers = 0, more_layers = 0;  // measured; equal for a model that has no more
  std::int64_t repetitions = 0;                  // of each
  double seconds = 0;                            // that it took
};

// What `layers` layers take where `few` and `more` of them took these seconds: a straight line.
double at_layers(double few_s, double more_s, std::int64_t few, std::int64_t more, std::int64_t layers);

// Measures for about `budget_s`, in rounds over both depths so that a machine that slows down slows both;
// three rounds at least. The ranges are those between the quartiles, carried through the extrapolation, and
// never closer than 5 % to its middle. Throws what opening a device and allocating may throw; StopRequested.
Calibration calibrate(const Plan& run, BackendFactory make_backend, double budget_s);

// "1 and 3 of 32 layers, 12 times each"
std::string calibration_text(const Calibration& c, std::int64_t layers);

}  // namespace qt
