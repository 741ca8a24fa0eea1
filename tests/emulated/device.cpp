// A device for tests of device placement on machines without one: see __init__.py.
//
// Its tensors lie in the CPU's memory, and its operators are the CPU's. What is the device's own
// are the rules: tensors of two devices do not mix, a tensor's values are asked for at a price.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Ints = at::IntArrayRef;
constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);

// Memory, the current device, streams, generators: one of each.

struct Memory final : at::Allocator {
  at::DataPtr allocate(size_t size) override {
    void* start = size ? malloc(size) : nullptr;
    return {start, start, &free, DEVICE};
  }
  at::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t size) const override { memcpy(to, from, size); }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Generator final : at::CPUGeneratorImpl {
  Generator() : at::CPUGeneratorImpl(c10::default_rng_seed_val) { place(DEVICE); }
  void place(c10::Device device) {
    device_ = device;
    key_set_ = c10::DispatchKeySet(
        device.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>();
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator generator = at::make_generator<Generator>();
    return generator;
  }
};
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

// Waiting: whenever the host asks for values, a real device's queue runs dry.

std::atomic<long> waits{0};
thread_local bool inside = false;  // an operator of the CPU's, which copies behind the scenes

void waited() {
  if (!inside) waits++;
}

// The same memory as a tensor of the CPU.
Tensor on_cpu(const Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  return at::from_blob(
      tensor.storage().mutable_data(), tensor.sizes(), tensor.strides(), tensor.storage_offset(),
      nullptr, tensor.options().device(at::kCPU).requires_grad(false));
}
OptionalTensor on_cpu(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(on_cpu(*tensor)) : std::nullopt;
}
Tensor on_device(const Tensor& tensor) { return tensor.defined() ? tensor.to(DEVICE) : tensor; }

// What every device has to bring itself: tensors, views, copies, values.

const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

Tensor empty(
    Ints size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(
    Ints size, Ints stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
}
const Tensor& resize_(const Tensor& self, Ints size, std::optional<at::MemoryFormat> format) {
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}
Tensor& set_(Tensor& self, at::Storage storage, int64_t offset, Ints size, Ints stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}
Tensor as_strided(const Tensor& self, Ints size, Ints stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}
Tensor view(const Tensor& self, Ints size) { return at::native::view(self, size); }
Tensor reshape_alias(const Tensor& self, Ints size, Ints stride) {
  return at::native::_reshape_alias(self, size, stride);
}
Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  if (to.is_cpu()) waited();
  on_cpu(to).copy_(on_cpu(self));
  return to;
}
Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  if (to.sizes() != self.sizes()) to.resize_(self.sizes());
  on_cpu(to).copy_(on_cpu(self));
  return to;
}
at::Scalar item(const Tensor& self) {
  waited();
  return on_cpu(self).item();
}

void same_device(bool same, const char* what) {
  TORCH_CHECK(same, what, ": tensors of the device and of the CPU");
}
Tensor convolution(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Ints stride, Ints padding,
    Ints dilation, bool transposed, Ints output_padding, int64_t groups) {
  same_device(!x.is_cpu() && !weight.is_cpu() && !(bias && bias->is_cpu()), "convolution");
  return on_device(at::convolution(
      on_cpu(x), on_cpu(weight), on_cpu(bias), stride, padding, dilation, transposed,
      output_padding, groups));
}
std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, Ints stride, Ints padding,
    Ints dilation, bool transposed, Ints output_padding, int64_t groups, std::array<bool, 3> mask) {
  same_device(!grad.is_cpu() && !x.is_cpu() && !weight.is_cpu(), "convolution_backward");
  const std::vector<int64_t> bias{transposed ? weight.size(1) * groups : weight.size(0)};
  const auto [dx, dweight, dbias] = at::convolution_backward(
      on_cpu(grad), on_cpu(x), on_cpu(weight),
      mask[2] ? at::OptionalIntArrayRef(bias) : at::OptionalIntArrayRef(), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  return {on_device(dx), on_device(dweight), on_device(dbias)};
}

// As long as it lives, copies are no waiting, and the generator is the CPU's.
struct OnCpu {
  Generator* generator;
  explicit OnCpu(Generator* given) : generator(given) {
    inside = true;
    if (generator) generator->place(at::kCPU);
  }
  ~OnCpu() {
    if (generator) generator->place(DEVICE);
    inside = false;
  }
};

// Every other operator: the CPU's, where all arguments are of the device. As on a GPU, tensors
// without dimensions may come from the CPU, and so may indices.
void any_other(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  const bool indexing = name.find("index") != std::string::npos;
  bool ours = false, theirs = false;
  Generator* generator = nullptr;
  const auto look = [&](const Tensor& tensor) {
    if (!tensor.defined()) return;
    ours = ours || !tensor.is_cpu();
    theirs = theirs || (tensor.is_cpu() && tensor.dim() > 0);
  };
  for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (argument.isTensor()) look(argument.toTensor());
    if (argument.isTensorList() && !indexing)
      for (const auto& tensor : argument.toTensorVector()) look(tensor);
    if (argument.isGenerator()) {
      const auto given = argument.toGenerator();
      same_device(given.device() == DEVICE, name.c_str());
      generator = static_cast<Generator*>(given.unsafeGetGeneratorImpl());
    }
  }
  same_device(!(ours && theirs), name.c_str());
  const OnCpu scope(generator);
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_other>());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  // PyTorch's own composition for unknown devices does not take channels-last images.
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&any_other>());
}

}  // namespace

// Autocast as CUDA has it, for the operators of these networks.
namespace at::autocast {
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(group_norm, fp32)
  KERNEL_PRIVATEUSEONE(exp, fp32)
  KERNEL_PRIVATEUSEONE(pow, Tensor_Scalar, fp32)
  KERNEL_PRIVATEUSEONE(sum, fp32)
  KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
}
}  // namespace at::autocast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("waits", [] { return waits.load(); });
}
