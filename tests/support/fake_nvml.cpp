// A management library of a driver that is not there, loaded by the program in place of NVML. Two cards, in
// another order than by their addresses; the one at 0000:01:00.0 draws 200 W. FAKE_NVML says which functions
// misbehave: "nvmlDeviceGetPowerUsage=fail nvmlDeviceGetClockInfo=ones".
//
//   fail   fails, after writing what the caller must not read
//   zero, ones   succeed with all bits 0 or 1 (no answer; 2^32 - 1, or 2^64 - 1)
//   huge   succeeds with 10^9
//   still, restart   of the energy counter: does not move; starts anew after a tenth of a second
//   hang   of the power: answers once, then no more
//   many   of the list of processes: more of them than anybody expects
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

namespace {

constexpr int kSuccess = 0, kInvalid = 2, kTooShort = 7, kUnknown = 999;

std::string behaviour(const std::string& function) {
  const char* text = std::getenv("FAKE_NVML");
  const std::string all = text == nullptr ? "" : std::string(text) + " ";
  const std::size_t at = all.find(function + "=");
  if (at == std::string::npos) return "valid";
  const std::size_t from = at + function.size() + 1;
  return all.substr(from, all.find(' ', from) - from);
}

template <class T>
int answer(const char* function, T* out, T valid) {
  const std::string how = behaviour(function);
  *out = how == "zero"                     ? T{0}
         : how == "huge"                   ? T{1'000'000'000}
         : how == "valid" || how == "hang" ? valid
                                           : static_cast<T>(-1);
  return how == "fail" ? kUnknown : kSuccess;
}

int number(const char* function, unsigned* out, unsigned valid) { return answer(function, out, valid); }

int card_0, card_1;  // their addresses are what handles are
bool is_second(const void* card) { return card == &card_1; }

struct Memory {
  unsigned long long total, free, used;
};
struct Process {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
};

double seconds() {
  static const auto start = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

extern "C" {

int nvmlInit_v2() { return behaviour("nvmlInit_v2") == "fail" ? kUnknown : kSuccess; }
int nvmlShutdown() { return kSuccess; }

int nvmlDeviceGetCount_v2(unsigned* count) { return number("nvmlDeviceGetCount_v2", count, 2); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** card) {
  *card = index == 0 ? &card_1 : &card_0;
  return behaviour("nvmlDeviceGetHandleByIndex_v2") == "fail" ? kUnknown : kSuccess;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* address, void** card) {
  *card = std::strcmp(address, "0000:02:00.0") == 0 ? &card_1 : &card_0;
  if (behaviour("nvmlDeviceGetHandleByPciBusId_v2") == "fail") return kUnknown;
  return is_second(*card) || std::strcmp(address, "0000:01:00.0") == 0 ? kSuccess : kInvalid;
}
int nvmlDeviceGetName(void* card, char* name, unsigned length) {
  const std::string how = behaviour("nvmlDeviceGetName");
  if (how == "fail") return kUnknown;
  if (how == "zero") return kSuccess;
  std::strncpy(name, is_second(card) ? "NVIDIA GeForce RTX 3060" : "NVIDIA GeForce RTX 4070", length);
  return kSuccess;
}
int nvmlDeviceGetPowerUsage(void* card, unsigned* milliwatts) {
  static int answers = 0;
  if (behaviour("nvmlDeviceGetPowerUsage") == "hang" && answers++ > 0)
    std::this_thread::sleep_for(std::chrono::hours(1));
  return number("nvmlDeviceGetPowerUsage", milliwatts, is_second(card) ? 20'000 : 200'000);
}
int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned* milliwatts) {
  return number("nvmlDeviceGetEnforcedPowerLimit", milliwatts, 180'000);
}
int nvmlDeviceGetPowerManagementDefaultLimit(void*, unsigned* milliwatts) {
  return number("nvmlDeviceGetPowerManagementDefaultLimit", milliwatts, 200'000);
}
int nvmlDeviceGetPowerManagementLimitConstraints(void*, unsigned* least, unsigned* most) {
  *least = 100'000;
  return number("nvmlDeviceGetPowerManagementLimitConstraints", most, 215'000);
}
int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* millijoules) {
  const std::string how = behaviour("nvmlDeviceGetTotalEnergyConsumption");
  const double s = seconds(), counted = how == "still" ? 0 : how == "restart" && s > 0.1 ? s - 0.1 : 50 + s;
  const auto valid = static_cast<unsigned long long>(counted * 200'000);
  if (how != "still" && how != "restart")
    return answer("nvmlDeviceGetTotalEnergyConsumption", millijoules, valid);
  *millijoules = how == "still" ? 12'345 : valid;
  return kSuccess;
}
int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
  return number("nvmlDeviceGetTemperature", celsius, 66);
}
int nvmlDeviceGetClockInfo(void*, int kind, unsigned* mhz) {
  return number("nvmlDeviceGetClockInfo", mhz, kind == 1 ? 2475 : 10'501);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* bits) {
  return answer("nvmlDeviceGetCurrentClocksThrottleReasons", bits, 0x25ULL);
}
int nvmlDeviceGetMemoryInfo(void*, Memory* m) {
  const std::string how = behaviour("nvmlDeviceGetMemoryInfo");
  *m = {.total = 12'878'610'432, .free = 0, .used = 3'000'000'000};
  if (how == "zero") *m = {};
  if (how == "ones" || how == "fail") std::memset(m, 0xFF, sizeof *m);
  return how == "fail" ? kUnknown : kSuccess;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* count, Process* list) {
  const std::string how = behaviour("nvmlDeviceGetComputeRunningProcesses_v3");
  const unsigned room = *count, there = how == "many" ? 100 : how == "zero" ? 0 : 2;
  *count = how == "ones" || how == "fail" ? ~0U : there;
  if (how == "fail") return kUnknown;
  if (room < there) return kTooShort;
  for (unsigned i = 0; i < there; ++i)
    list[i] = {
        .pid = 100 + i, .used = i == 1 ? ~0ULL : 2'000'000'000, .gpu_instance = ~0U, .compute_instance = ~0U};
  return kSuccess;
}
int nvmlSystemGetProcessName(unsigned pid, char* name, unsigned length) {
  if (behaviour("nvmlSystemGetProcessName") == "fail") return kUnknown;
  std::strncpy(name, pid == 100 ? "/usr/bin/qtrain" : "Xorg", length);
  return kSuccess;
}
int nvmlDeviceGetCurrPcieLinkGeneration(void*, unsigned* generation) {
  return number("nvmlDeviceGetCurrPcieLinkGeneration", generation, 1);
}
int nvmlDeviceGetCurrPcieLinkWidth(void*, unsigned* width) {
  return number("nvmlDeviceGetCurrPcieLinkWidth", width, 8);
}
int nvmlDeviceGetMaxPcieLinkGeneration(void*, unsigned* generation) {
  return number("nvmlDeviceGetMaxPcieLinkGeneration", generation, 4);
}
int nvmlDeviceGetMaxPcieLinkWidth(void*, unsigned* width) {
  return number("nvmlDeviceGetMaxPcieLinkWidth", width, 16);
}

}  // extern "C"
